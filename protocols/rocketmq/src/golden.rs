//! Bytes that Apache's own Java code has written, for the tests of every module.
//!
//! The files of `golden/` were made by a small program on the classes of `org.apache.rocketmq:rocketmq-client` and
//! `rocketmq-store` 5.3.3 (with their fastjson 1.2.83): one line a case, a name and then words.
//!
//! - `commands.txt`: name, codec (JSON or ROCKETMQ), hex of a whole frame (`RemotingCommand.encode`)
//! - `records.txt`: name, hex of a stored record (`MessageExtEncoder.encode`)
//! - `bodies.txt`: name, JSON text (`RemotingSerializable.encode`)
//! - `misc.txt`: property text, batch body, message ids, `String.hashCode`, checksums, a zlib body

/// The rest of every line of `file` that begins with `name`.
fn lines<'a>(file: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    file.lines().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(' '))
}

/// A frame, by name and codec (`JSON` or `ROCKETMQ`).
pub(crate) fn command(name: &str, codec: &str) -> Vec<u8> {
    let found = lines(include_str!("../golden/commands.txt"), name)
        .find_map(|line| line.strip_prefix(codec)?.strip_prefix(' '));
    unhex(found.unwrap_or_else(|| panic!("no golden command {name} {codec}")))
}

/// All frames as name, codec and bytes.
pub(crate) fn commands() -> impl Iterator<Item = (&'static str, &'static str, Vec<u8>)> {
    include_str!("../golden/commands.txt").lines().map(|line| {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("three words a line");
        (word(), word(), unhex(word()))
    })
}

/// A stored record.
pub(crate) fn record(name: &str) -> Vec<u8> {
    unhex(lines(include_str!("../golden/records.txt"), name).next().expect("a golden record"))
}

/// A JSON body.
pub(crate) fn body(name: &str) -> &'static str {
    let file: &'static str = include_str!("../golden/bodies.txt");
    file.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("no golden body {name}"))
}

/// The first value of that name in `misc.txt`.
pub(crate) fn misc(name: &str) -> &'static str {
    let file: &'static str = include_str!("../golden/misc.txt");
    file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).expect("a golden value")
}

/// All values of that name in `misc.txt`.
pub(crate) fn all_misc(name: &'static str) -> impl Iterator<Item = &'static str> {
    lines(include_str!("../golden/misc.txt"), name)
}

/// The bytes of hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("two hexadecimal digits");
    (0..text.len()).step_by(2).map(byte).collect()
}
