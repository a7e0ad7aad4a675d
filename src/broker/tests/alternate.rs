//! Alternate exchanges: where messages go that an exchange leads nowhere.

use super::*;

fn exchange(name: &str, alternate: &'static str) -> Op {
    let spec = ExchangeSpec {
        name: name.into(),
        kind: ExchangeKind::Direct,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Bytes::from_static(alternate.as_bytes()),
    };
    Op::DeclareExchange(spec, false)
}

fn bind(source: &str, destination: Destination, key: &str) -> Op {
    let arguments = Bytes::new();
    Op::Bind(BindingSpec { source: source.into(), destination, key: key.into(), arguments })
}

fn mandatory(exchange: &str, key: &str) -> Op {
    let Op::Publish(publish) = publish(exchange, key, 0, b"x") else { unreachable!() };
    Op::Publish(Publish { mandatory: true, ..publish })
}

/// Was it returned?
fn comes_back(h: &mut Harness, c: &mut Client, exchange: &str, key: &str) -> bool {
    h.send(c, mandatory(exchange, key));
    h.run();
    c.take().iter().any(|event| matches!(event, Event::Returned { .. }))
}

fn depth(h: &mut Harness, c: &mut Client, name: &str) -> u64 {
    match h.call(c, queue(name, true)) {
        Ok(Reply::Queue { messages, .. }) => messages,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_what_no_binding_takes_goes_there_and_comes_back_when_nobody_does() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("own", true)).unwrap();
    h.call(&mut c, queue("other", true)).unwrap();
    h.call(&mut c, exchange("e", "aalt")).unwrap();
    assert!(comes_back(&mut h, &mut c, "e", "k"), "there is no such exchange yet");
    h.call(&mut c, exchange("alt", "")).unwrap();
    assert!(comes_back(&mut h, &mut c, "e", "k"), "it leads nowhere");
    h.call(&mut c, bind("alt", Destination::Queue("other".into()), "k")).unwrap();
    assert!(!comes_back(&mut h, &mut c, "e", "k"));
    assert_eq!((depth(&mut h, &mut c, "own"), depth(&mut h, &mut c, "other")), (0, 1));
    h.call(&mut c, bind("e", Destination::Queue("own".into()), "k")).unwrap();
    assert!(!comes_back(&mut h, &mut c, "e", "k"));
    assert_eq!((depth(&mut h, &mut c, "own"), depth(&mut h, &mut c, "other")), (1, 1));
}

#[test]
fn circles_of_alternates_end_and_an_exchange_behind_a_binding_has_its_own() {
    let mut h = Harness::new();
    let mut c = h.client(1);
    h.call(&mut c, queue("q", true)).unwrap();
    h.call(&mut c, exchange("one", "atwo")).unwrap();
    h.call(&mut c, exchange("two", "aone")).unwrap();
    assert!(comes_back(&mut h, &mut c, "one", "k"));
    h.call(&mut c, bind("one", Destination::Queue("q".into()), "k")).unwrap();
    assert!(!comes_back(&mut h, &mut c, "two", "k"));
    assert_eq!(depth(&mut h, &mut c, "q"), 1);
    h.call(&mut c, exchange("front", "amissing")).unwrap();
    h.call(&mut c, bind("front", Destination::Exchange("two".into()), "k")).unwrap();
    assert!(!comes_back(&mut h, &mut c, "front", "k"));
    assert_eq!(depth(&mut h, &mut c, "q"), 2);
    h.call(&mut c, exchange("default", "a")).unwrap();
    assert!(comes_back(&mut h, &mut c, "default", "q"), "the default exchange is no alternate");
}
