//! The arrows of the house, checked.
//!
//! Owns: the rules of `src/docs/architecture.md` that a compiler does not check, as data with their reasons.
//! Promises: a broken rule is named with file, line and reason; every rule has a planted violation below that it must find.
//! Does not know: what the code does. It reads paths and names, with comments and literals taken out.

use std::fs;
use std::path::{Path, PathBuf};

/// Where something is forbidden, and why.
struct Rule {
    name: &'static str,
    /// Files it is about: paths from the repository's root begin with one of these.
    places: &'static [&'static str],
    /// Files among them that it is not about.
    except: &'static [&'static str],
    forbids: Forbids,
    why: &'static str,
}

enum Forbids {
    /// Paths that begin so. A last letter `*` stands for any rest of that segment.
    PathFrom(&'static [&'static [&'static str]]),
    /// Paths with these segments next to each other.
    PathWith(&'static [&'static [&'static str]]),
    /// Rooms of the product (`crate::x`) other than these.
    RoomsBut(&'static [&'static str]),
    /// These tokens.
    Token(&'static str),
    /// Identifiers with one of these words in them.
    Words(&'static [&'static str]),
}

use Forbids::{PathFrom, PathWith, RoomsBut, Token, Words};

const RULES: &[Rule] = &[
    Rule {
        name: "broker calls downwards only",
        places: &["src/broker/"],
        except: &[],
        forbids: RoomsBut(&["broker", "security", "limits", "clock", "metrics"]),
        why: "both protocols and the cluster are joined to the core by node; a core that knows them can not be simulated",
    },
    Rule {
        name: "broker names no socket, frame or command code",
        places: &["src/broker/"],
        except: &[],
        forbids: PathFrom(&[
            &["dassie_amqp"],
            &["dassie_rocketmq"],
            &["tokio", "net"],
            &["std", "net"],
            &["hyper*"],
        ]),
        why: "the core serves two protocols by knowing neither",
    },
    Rule {
        name: "cluster reaches storage, not the broker",
        places: &["src/cluster/"],
        except: &[],
        forbids: RoomsBut(&["cluster", "limits", "clock", "metrics"]),
        why: "cluster implements ReplicatedLog, broker implements Apply, and only node knows both",
    },
    Rule {
        name: "cluster knows no protocol",
        places: &["src/cluster/"],
        except: &[],
        forbids: PathFrom(&[&["dassie_amqp"], &["dassie_rocketmq"]]),
        why: "what is replicated are batches of outcomes",
    },
    Rule {
        name: "openraft only in cluster",
        places: &["src/", "protocols/", "storage/"],
        except: &["src/cluster/"],
        forbids: PathFrom(&[&["openraft*"]]),
        why: "the consensus library is pinned behind a seam, so that it can be replaced (ADR 0002)",
    },
    Rule {
        name: "server calls broker and protocols",
        places: &["src/server/"],
        except: &[],
        forbids: RoomsBut(&[
            "server", "broker", "security", "limits", "clock", "metrics", "alarms", "config",
        ]),
        why: "adapters translate; they do not reach around the core",
    },
    Rule {
        name: "the amqp adapter does not name the rocketmq one",
        places: &["src/server/amqp/"],
        except: &[],
        forbids: PathFrom(&[&["crate", "server", "rocketmq"], &["dassie_rocketmq"]]),
        why: "what crosses between the worlds crosses in the core",
    },
    Rule {
        name: "the rocketmq adapter does not name the amqp one",
        places: &["src/server/rocketmq/"],
        except: &[],
        forbids: PathFrom(&[&["crate", "server", "amqp"], &["dassie_amqp"]]),
        why: "what crosses between the worlds crosses in the core",
    },
    Rule {
        name: "security decides alone",
        places: &["src/security/"],
        except: &[],
        forbids: RoomsBut(&["security", "limits", "clock"]),
        why: "one authorize() for every listener (D19) must not depend on any of them",
    },
    Rule {
        name: "clock, limits, metrics, alarms, logging and process stand at the bottom",
        places: &["src/clock.rs", "src/limits.rs", "src/metrics.rs", "src/alarms.rs", "src/process.rs"],
        except: &[],
        forbids: RoomsBut(&["clock", "limits", "metrics", "alarms", "process"]),
        why: "everybody may use them, so they can use nobody",
    },
    Rule {
        name: "configuration knows no consumer of it",
        places: &["src/config.rs", "src/config/"],
        except: &[],
        forbids: RoomsBut(&["config", "limits"]),
        why: "rooms are given values, by node",
    },
    Rule {
        name: "protocols are bytes and meaning",
        places: &["protocols/"],
        except: &[],
        forbids: PathFrom(&[
            &["tokio*"],
            &["dassie"],
            &["dassie_storage"],
            &["hyper*"],
            &["std", "net", "Tcp*"],
            &["std", "net", "UdpSocket"],
        ]),
        why: "a codec without sockets and broker can be fuzzed and tested by the byte",
    },
    Rule {
        name: "storage knows none of ours",
        places: &["storage/src/"],
        except: &[],
        forbids: PathFrom(&[
            &["dassie"],
            &["dassie_amqp"],
            &["dassie_rocketmq"],
            &["tokio*"],
            &["std", "net"],
        ]),
        why: "the log is below everything",
    },
    Rule {
        name: "storage names no message semantics",
        places: &["storage/src/"],
        except: &[],
        forbids: Words(&[
            "amqp",
            "rocketmq",
            "exchange",
            "exchanges",
            "binding",
            "bindings",
            "routing",
            "topic",
            "topics",
            "vhost",
            "consumer",
            "consumers",
            "producer",
            "publisher",
            "ack",
            "nack",
            "acked",
        ]),
        why: "the log keeps batches of records and does not learn what a record means",
    },
    Rule {
        name: "unsafe only where files are mapped",
        places: &["src/", "protocols/", "storage/", "interop-tests/src/", "examples/", "tests/"],
        except: &["storage/src/map.rs"],
        forbids: Token("unsafe"),
        why: "one module with a written proof can be reviewed",
    },
    Rule {
        name: "time is injected",
        places: &["src/", "protocols/", "storage/"],
        // Programs and tests that measure have nobody to inject a clock into.
        except: &[
            "src/clock.rs",
            "src/server/",
            "src/cluster/tests.rs",
            // The runtime's clock, which simulations own.
            "src/cluster/copy.rs",
            "protocols/amqp/benches/",
            "storage/examples/",
            "storage/benches/",
        ],
        forbids: PathWith(&[&["SystemTime"], &["Instant", "now"]]),
        why: "a simulation that does not own the clock does not repeat (D20)",
    },
    Rule {
        name: "no thread sleeps",
        places: &["src/", "protocols/", "storage/", "tests/", "examples/"],
        except: &["storage/examples/"],
        forbids: PathWith(&[&["thread", "sleep"]]),
        why: "a test that sleeps is slow on a good day and wrong on a bad one; a product that sleeps polls",
    },
];

/// One violation as a line for a person.
fn violations(file: &str, text: &str) -> Vec<String> {
    let tokens = tokenize(text);
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!("{file}:1: [a file says what it owns] it does not begin with //!"));
    }
    for rule in RULES {
        let concerns = |list: &[&str]| list.iter().any(|place| file.starts_with(place));
        if concerns(rule.places) && !concerns(rule.except) {
            for (line, what) in rule.forbids.find(file, &tokens) {
                found.push(format!("{file}:{line}: [{}] {what}: {}", rule.name, rule.why));
            }
        }
    }
    found
}

impl Forbids {
    fn find(&self, file: &str, tokens: &[Lexeme]) -> Vec<(usize, String)> {
        let shown = |(line, path): (usize, Vec<String>)| (line, path.join("::"));
        let in_paths = |test: &dyn Fn(&[String]) -> bool| -> Vec<(usize, String)> {
            paths(file, tokens).into_iter().filter(|(_, path)| test(path)).map(shown).collect()
        };
        match self {
            PathFrom(starts) => {
                in_paths(&|path| starts.iter().any(|s| path.len() >= s.len() && same(&path[..s.len()], s)))
            }
            PathWith(parts) => {
                in_paths(&|path| parts.iter().any(|p| path.windows(p.len()).any(|w| same(w, p))))
            }
            RoomsBut(allowed) => in_paths(&|path| {
                path.len() > 1
                    && path[0] == "crate"
                    && ROOMS.contains(&&*path[1])
                    && !allowed.contains(&&*path[1])
            }),
            Token(text) => {
                tokens.iter().filter(|t| t.text == *text).map(|t| (t.line, t.text.clone())).collect()
            }
            Words(words) => tokens
                .iter()
                .filter(|t| split_words(&t.text).iter().any(|word| words.contains(&&**word)))
                .map(|t| (t.line, t.text.clone()))
                .collect(),
        }
    }
}

/// Everything that can stand behind `crate::` in the product. A test below compares with `src/lib.rs`.
const ROOMS: &[&str] = &[
    "accounts", "alarms", "awake", "backup", "broker", "cli", "clock", "cluster", "config", "copies",
    "data_dir", "fronts", "limits", "logging", "member", "metrics", "node", "pressure", "process",
    "security", "server",
];

fn same(path: &[String], pattern: &[&str]) -> bool {
    path.iter().zip(pattern).all(|(segment, wanted)| match wanted.strip_suffix('*') {
        Some(start) => segment.starts_with(start),
        None => segment == wanted,
    })
}

/// `fooBar_baz` is foo, bar, baz.
fn split_words(identifier: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for c in identifier.chars() {
        if c == '_' || (c.is_uppercase() && after_lower) {
            words.push(String::new());
        }
        if c != '_' {
            words.last_mut().expect("never empty").extend(c.to_lowercase());
        }
        after_lower = c.is_lowercase();
    }
    words
}

/// An identifier or one sign. `::` is one token.
struct Lexeme {
    text: String,
    line: usize,
    /// Inline modules around it.
    modules: usize,
}

/// The tokens of a source file without comments, strings, characters and lifetimes.
fn tokenize(text: &str) -> Vec<Lexeme> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens: Vec<Lexeme> = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let end = match skip_or_take(&chars, at) {
            Piece::Skip(end) => end,
            Piece::Take(end) => {
                let text = chars[at..end].iter().collect();
                tokens.push(Lexeme { text, line, modules: 0 });
                end
            }
        };
        line += chars[at..end].iter().filter(|c| **c == '\n').count();
        at = end;
    }
    mark_modules(&mut tokens);
    tokens
}

enum Piece {
    Skip(usize),
    Take(usize),
}

fn skip_or_take(chars: &[char], at: usize) -> Piece {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    match chars[at] {
        '/' if next(1) == '/' => Piece::Skip(find(chars, at, |c| c == '\n')),
        '/' if next(1) == '*' => Piece::Skip(end_of_comment(chars, at)),
        '"' => Piece::Skip(end_of_string(chars, at)),
        '\'' if next(1) == '\\' => Piece::Skip(find(chars, at + 3, |c| c == '\'') + 1),
        '\'' if next(2) == '\'' => Piece::Skip(at + 3),
        '\'' => Piece::Skip(find(chars, at + 1, |c| !is_name(c))),
        ':' if next(1) == ':' => Piece::Take(at + 2),
        c if is_name(c) => {
            let end = find(chars, at, |c| !is_name(c));
            // The prefix of a raw, byte or C string is no name.
            let prefix: String = chars[at..end].iter().collect();
            let opens = |c: char| matches!(c, '"' | '#');
            match (&*prefix, chars.get(end)) {
                ("r" | "br" | "cr", Some(c)) if opens(*c) => Piece::Skip(end_of_raw_string(chars, end)),
                ("b" | "c", Some('"')) => Piece::Skip(end_of_string(chars, end)),
                _ => Piece::Take(end),
            }
        }
        c if c.is_whitespace() => Piece::Skip(at + 1),
        _ => Piece::Take(at + 1),
    }
}

fn find(chars: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|at| wanted(chars[*at])).unwrap_or(chars.len())
}

fn end_of_comment(chars: &[char], from: usize) -> usize {
    let (mut depth, mut at) = (0, from);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn end_of_string(chars: &[char], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// `from` is behind the r. `r#name` is a name, not a string; it has no quote behind its sign.
fn end_of_raw_string(chars: &[char], from: usize) -> usize {
    let quote = find(chars, from, |c| c != '#');
    if chars.get(quote) != Some(&'"') {
        return quote;
    }
    let signs = quote - from;
    let closes = |at: &usize| {
        chars[*at] == '"' && chars[at + 1..].iter().take(signs).filter(|c| **c == '#').count() == signs
    };
    (quote + 1..chars.len()).find(closes).map_or(chars.len(), |at| at + 1 + signs)
}

fn mark_modules(tokens: &mut [Lexeme]) {
    let (mut depth, mut open) = (0_usize, Vec::new());
    for at in 0..tokens.len() {
        tokens[at].modules = open.len();
        match &*tokens[at].text {
            "{" => {
                if at >= 2 && tokens[at - 2].text == "mod" {
                    open.push(depth);
                }
                depth += 1;
            }
            "}" => {
                depth = depth.saturating_sub(1);
                if open.last() == Some(&depth) {
                    open.pop();
                }
            }
            _ => {}
        }
    }
}

/// All paths of a file, groups unfolded, `self` and `super` resolved.
fn paths(file: &str, tokens: &[Lexeme]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let inside = at > 0 && tokens[at - 1].text == "::";
        if !inside && is_identifier(&tokens[at].text) {
            let mut each = Vec::new();
            unfold(tokens, at, &mut Vec::new(), &mut each);
            let line = tokens[at].line;
            found.extend(each.into_iter().map(|path| (line, resolve(file, tokens[at].modules, path))));
        }
    }
    found
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads a path or a group at `at`, pushes what it names behind `prefix`, returns where it ends.
fn unfold(tokens: &[Lexeme], mut at: usize, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |t| &*t.text);
    let length = prefix.len();
    if text(at) == "{" {
        at += 1;
        while !matches!(text(at), "}" | "") {
            let start = at;
            at = unfold(tokens, at, prefix, found).max(start + 1);
            while !matches!(text(at), "," | "}" | "") {
                at += 1;
            }
            at += usize::from(text(at) == ",");
        }
        return at + 1;
    }
    while is_identifier(text(at)) || text(at) == "*" {
        prefix.push(text(at).to_owned());
        at += 1;
        if text(at) != "::" {
            break;
        }
        at += 1;
        if text(at) == "{" {
            at = unfold(tokens, at, prefix, found);
            prefix.truncate(length);
            return at;
        }
    }
    if prefix.len() > length {
        found.push(prefix.clone());
    }
    prefix.truncate(length);
    at
}

fn resolve(file: &str, inline: usize, path: Vec<String>) -> Vec<String> {
    let supers = path.iter().take_while(|segment| *segment == "super").count();
    let selfs = usize::from(supers == 0 && path.first().is_some_and(|segment| segment == "self"));
    if supers + selfs == 0 {
        return path;
    }
    let inside = file.split_once("src/").map_or("", |(_, inside)| inside);
    let name = inside.strip_suffix(".rs").unwrap_or(inside);
    let name = name.strip_suffix("/mod").unwrap_or(name);
    let mut module: Vec<String> =
        std::iter::once("crate").chain(name.split('/')).map(str::to_owned).collect();
    if matches!(name, "lib" | "main") {
        module.truncate(1);
    }
    // Inline modules have names that no rule asks for: going up through them is all that counts.
    module.truncate(module.len().saturating_sub(supers.saturating_sub(inline)).max(1));
    module.extend(path.into_iter().skip(supers + selfs));
    module
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files of the repository, with paths from its root.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for top in ["src", "protocols", "storage", "interop-tests", "examples", "tests"] {
        collect(&root().join(top), &mut found);
    }
    found
}

fn collect(directory: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let shown = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push((shown, fs::read_to_string(&path).expect("a readable source file")));
        }
    }
}

/// What stands in a manifest's `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let table: toml::Table = manifest.parse().expect("a manifest is TOML");
    table
        .get("dependencies")
        .and_then(toml::Value::as_table)
        .map(|d| d.keys().cloned().collect())
        .unwrap_or_default()
}

fn unwanted(dependencies: &[String], starts: &[&str]) -> Vec<String> {
    dependencies.iter().filter(|name| starts.iter().any(|start| name.starts_with(start))).cloned().collect()
}

#[test]
fn no_arrow_of_the_house_is_broken() {
    let sources = sources();
    assert!(sources.iter().any(|(file, _)| file == "src/lib.rs"), "looking in the wrong place");
    let broken: Vec<_> = sources.iter().flat_map(|(file, text)| violations(file, text)).collect();
    assert!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn crates_below_the_product_depend_on_nothing_of_ours() {
    for (manifest, starts) in [
        ("protocols/amqp/Cargo.toml", &["dassie", "tokio", "openraft", "hyper", "mio"][..]),
        ("protocols/rocketmq/Cargo.toml", &["dassie", "tokio", "openraft", "hyper", "mio"]),
        ("storage/Cargo.toml", &["dassie", "tokio", "openraft", "hyper", "mio"]),
    ] {
        let names = dependencies(&fs::read_to_string(root().join(manifest)).expect("a manifest"));
        assert_eq!(unwanted(&names, starts), Vec::<String>::new(), "{manifest}");
    }
    let planted = dependencies(
        "[dependencies]\nbytes = \"1\"\ntokio.workspace = true\n[dev-dependencies]\ndassie = \"1\"\n",
    );
    assert_eq!(unwanted(&planted, &["dassie", "tokio"]), ["tokio"]);
}

#[test]
fn every_room_is_known_to_the_rules() {
    let library = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let declared = library.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';'));
    let unknown: Vec<_> = declared.filter(|room| !ROOMS.contains(room)).collect();
    assert!(unknown.is_empty(), "no rule says who may use {unknown:?}");
}

/// One violation per rule, as somebody in a hurry would write it.
const PLANTED: &[(&str, &str, &str)] = &[
    ("broker calls downwards only", "src/broker/apply.rs", "use crate::{limits, server::amqp};"),
    ("broker calls downwards only", "src/broker/queue/mod.rs", "use super::super::cluster::Driver;"),
    (
        "broker names no socket, frame or command code",
        "src/broker/link.rs",
        "fn f(s: tokio::net::TcpStream) {}",
    ),
    ("cluster reaches storage, not the broker", "src/cluster/driver.rs", "use crate::broker::api::Verb;"),
    ("cluster knows no protocol", "src/cluster/driver.rs", "use dassie_rocketmq::Command;"),
    ("openraft only in cluster", "src/broker/apply.rs", "use openraft_rt::Instant;"),
    ("server calls broker and protocols", "src/server/amqp/mod.rs", "use crate::cluster::Role;"),
    (
        "the amqp adapter does not name the rocketmq one",
        "src/server/amqp/mod.rs",
        "use super::rocketmq::route;",
    ),
    (
        "the rocketmq adapter does not name the amqp one",
        "src/server/rocketmq/pull.rs",
        "let x = dassie_amqp::Method::Ack;",
    ),
    ("security decides alone", "src/security/mod.rs", "use crate::server;"),
    (
        "clock, limits, metrics, alarms, logging and process stand at the bottom",
        "src/clock.rs",
        "use crate::broker;",
    ),
    ("configuration knows no consumer of it", "src/config.rs", "use crate::node::Node;"),
    ("protocols are bytes and meaning", "protocols/amqp/src/frame.rs", "use tokio_util::codec::Decoder;"),
    ("storage knows none of ours", "storage/src/log.rs", "pub use dassie_amqp as amqp_;"),
    ("storage names no message semantics", "storage/src/log.rs", "fn find(routingKey: u8) {}"),
    ("unsafe only where files are mapped", "src/broker/queue.rs", "fn f() { unsafe { g() } }"),
    ("time is injected", "src/broker/queue.rs", "use std::time::*; fn f() { let t = Instant::now(); }"),
    ("time is injected", "storage/src/log.rs", "use std::{fs, time::{Duration, SystemTime}};"),
    ("no thread sleeps", "tests/some.rs", "fn t() { std::thread::sleep(D); }"),
];

#[test]
fn every_planted_violation_is_found_by_its_rule_and_by_its_line() {
    for (rule, file, code) in PLANTED {
        let found = violations(file, &format!("//! Text.\n\n{code}\n"));
        let wanted = format!("{file}:3: [{rule}]");
        assert!(found.iter().any(|line| line.starts_with(&wanted)), "{code}: {found:?}");
    }
    let headless = violations("src/broker/x.rs", "fn f() {}\n");
    assert!(headless[0].contains("does not begin with //!"));
}

#[test]
fn every_rule_has_a_planted_violation() {
    for rule in RULES {
        assert!(PLANTED.iter().any(|(name, ..)| *name == rule.name), "{}", rule.name);
    }
}

#[test]
fn comments_literals_and_lookalikes_are_no_violations() {
    let harmless = [
        ("src/broker/x.rs", "//! Text.\n// use crate::server;\n/* /* unsafe */ crate::node */\nfn f() {}\n"),
        (
            "src/broker/x.rs",
            "//! Text.\nfn f() { g(\"crate::server \\\" unsafe\", r#\"openraft::x \"\" \"#, '\"', b\"unsafe\"); }\n",
        ),
        ("src/broker/x.rs", "//! Text.\n#![allow(unsafe_code)]\nfn f<'a>(x: &'a str) -> &'a str { x }\n"),
        ("src/server/amqp/x.rs", "//! Text.\nuse std::time::Instant;\nfn f() { Instant::now(); }\n"),
        ("src/metrics.rs", "//! Text.\nmod tests {\n    use super::*;\n    use super::server_name;\n}\n"),
        ("storage/src/log.rs", "//! Text.\nfn package(stack: u8, backtrack: u8) {}\n"),
    ];
    for (file, text) in harmless {
        assert_eq!(violations(file, text), Vec::<String>::new());
    }
}
