//! What we read in an X.509 certificate: its dates and its names.
//!
//! Owns: the few fields of RFC 5280 that we need, and names as text. Promises: no byte sequence makes it fail in any other way
//! than by `None`; names come out as RabbitMQ writes them, so that its users keep their logins.
//! Does not know: whether a certificate can be trusted: rustls has verified it before, or it is our own.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, the version, and `[3]`, the extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `[2]` of GeneralName.
const DNS_NAME: u8 = 0x82;
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];
/// Longest name that we take. Bytes.
const NAME_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    /// First second in which it is valid, Unix time.
    pub(super) not_before: i64,
    /// Last second in which it is valid, Unix time.
    pub(super) not_after: i64,
    /// The subject's distinguished name, as RFC 4514 writes it: last part first.
    pub(super) subject: String,
    /// Its common names, joined by commas as RabbitMQ does.
    pub(super) common_name: Option<String>,
    /// The first DNS name of its alternative names.
    pub(super) dns_name: Option<String>,
}

impl Certificate {
    /// Reads DER.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let mut signed = Der(Der(der).take(SEQUENCE)?);
        let mut fields = Der(signed.take(SEQUENCE)?);
        if fields.0.first() == Some(&VERSION) {
            fields.next()?;
        }
        // Serial number, signature algorithm, issuer.
        for _ in 0..3 {
            fields.next()?;
        }
        let mut validity = Der(fields.take(SEQUENCE)?);
        let (not_before, not_after) = (unix_time(validity.next()?)?, unix_time(validity.next()?)?);
        let parts = name_parts(fields.take(SEQUENCE)?)?;
        let mut dns_name = None;
        while let Some((tag, content)) = fields.next() {
            if tag == EXTENSIONS {
                dns_name = first_dns_name(content);
            }
        }
        let common: Vec<&str> =
            parts.iter().filter(|part| part.oid == COMMON_NAME).map(|part| &*part.value).collect();
        let common_name = (!common.is_empty()).then(|| common.join(","));
        let texts: Vec<String> =
            parts.iter().rev().map(|part| format!("{}={}", kind(part.oid), escaped(&part.value))).collect();
        Some(Self { not_before, not_after, subject: texts.join(","), common_name, dns_name })
    }
}

/// Tag, length, content, one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            // A certificate that came through TLS is shorter than 64 KiB.
            let count = usize::from(first & 0x7f);
            let bytes = rest.get(..count).filter(|_| (1..=3).contains(&count))?;
            rest = &rest[count..];
            bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
        };
        let content = rest.get(..length)?;
        self.0 = &rest[length..];
        Some((tag, content))
    }

    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|(_, content)| content)
    }
}

struct Part<'a> {
    oid: &'a [u8],
    value: String,
}

fn name_parts(name: &[u8]) -> Option<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    let mut sets = Der(name);
    while !sets.0.is_empty() {
        let mut set = Der(sets.take(SET)?);
        while !set.0.is_empty() {
            let mut pair = Der(set.take(SEQUENCE)?);
            parts.push(Part { oid: pair.take(OID)?, value: text(pair.next()?)? });
        }
    }
    Some(parts)
}

/// A directory string. Control characters are refused: nobody's name has them, and a log line or a login with them lies.
fn text((tag, content): (u8, &[u8])) -> Option<String> {
    let text = match tag {
        // UTF8String, PrintableString, NumericString, IA5String, VisibleString
        0x0c | 0x12 | 0x13 | 0x16 | 0x1a => std::str::from_utf8(content).ok()?.to_owned(),
        // TeletexString, which everybody fills with Latin-1
        0x14 => content.iter().map(|byte| char::from(*byte)).collect(),
        // BMPString
        0x1e => {
            let units = content.chunks(2).map(|pair| match pair {
                [high, low] => u16::from_be_bytes([*high, *low]),
                _ => 0,
            });
            char::decode_utf16(units).collect::<Result<String, _>>().ok()?
        }
        _ => return None,
    };
    Some(text).filter(|text| text.len() <= NAME_MAX && !text.chars().any(char::is_control))
}

fn first_dns_name(extensions: &[u8]) -> Option<String> {
    let mut list = Der(Der(extensions).take(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = list.next() {
        let mut fields = Der(extension);
        if fields.take(OID)? != ALTERNATIVE_NAME {
            continue;
        }
        if fields.0.first() == Some(&BOOLEAN) {
            fields.next()?;
        }
        let mut names = Der(Der(fields.take(OCTETS)?).take(SEQUENCE)?);
        while let Some((tag, name)) = names.next() {
            if tag == DNS_NAME {
                // An IA5String by another tag.
                return text((0x16, name));
            }
        }
    }
    None
}

/// The short name of an attribute, as RabbitMQ writes it; others as their numbers.
fn kind(oid: &[u8]) -> String {
    let known = match oid {
        COMMON_NAME => "CN",
        [0x55, 4, 4] => "SN",
        [0x55, 4, 5] => "SERIALNUMBER",
        [0x55, 4, 6] => "C",
        [0x55, 4, 7] => "L",
        [0x55, 4, 8] => "ST",
        [0x55, 4, 9] => "STREET",
        [0x55, 4, 10] => "O",
        [0x55, 4, 11] => "OU",
        [0x55, 4, 12] => "TITLE",
        [0x55, 4, 42] => "GIVENNAME",
        [0x55, 4, 43] => "INITIALS",
        [0x55, 4, 44] => "GENERATIONQUALIFIER",
        [0x55, 4, 46] => "DNQUALIFIER",
        [0x55, 4, 65] => "PSEUDONYM",
        // 0.9.2342.19200300.100.1.1 and .25
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1] => "UID",
        [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25] => "DC",
        // 1.2.840.113549.1.9.1
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1] => "EMAILADDRESS",
        _ => return numbers(oid),
    };
    known.to_owned()
}

/// 2.5.4.17 and the like.
fn numbers(oid: &[u8]) -> String {
    let mut arcs = Vec::new();
    let mut arc = 0_u64;
    for byte in oid {
        arc = arc << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if arcs.is_empty() {
                let first = (arc / 40).min(2);
                arcs.push(first);
                arc -= first * 40;
            }
            arcs.push(arc);
            arc = 0;
        }
    }
    arcs.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

/// RFC 4514, section 2.4.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, c) in value.chars().enumerate() {
        let edge = at == 0 && matches!(c, ' ' | '#') || at == last && c == ' ';
        if edge || matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn unix_time((tag, content): (u8, &[u8])) -> Option<i64> {
    let digits = content.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let number =
        |part: &[u8]| part.iter().fold(0_i64, |number, digit| number * 10 + i64::from(*digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(&digits[..2]);
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| number(&rest[at..at + 2]));
    // Days since 1970-03-01 of a year that begins in March: leap days come last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * month + 2) / 5 + day - 1;
    Some(((days - 719_468) * 24 + hour) * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut out = vec![tag];
        match u8::try_from(length) {
            Ok(short @ ..0x80) => out.push(short),
            _ => out.extend([&[0x82][..], &u16::try_from(length).unwrap().to_be_bytes()].concat()),
        }
        out.extend(content);
        out
    }

    fn attribute(oid: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        der(SET, &der(SEQUENCE, &[der(OID, oid), der(tag, value)].concat()))
    }

    fn certificate(subject: &[u8]) -> Vec<u8> {
        let names = der(SEQUENCE, &[der(0x81, b"a@b"), der(DNS_NAME, b"client.example")].concat());
        let extension = der(SEQUENCE, &[der(OID, ALTERNATIVE_NAME), der(OCTETS, &names)].concat());
        let fields = [
            der(VERSION, &der(2, &[2])),
            der(2, &[1]),
            der(SEQUENCE, &[]),
            der(SEQUENCE, &[]),
            der(
                SEQUENCE,
                &[der(UTC_TIME, b"700101000000Z"), der(GENERALIZED_TIME, b"20500101000001Z")].concat(),
            ),
            der(SEQUENCE, subject),
            der(SEQUENCE, &[]),
            der(EXTENSIONS, &der(SEQUENCE, &extension)),
        ];
        der(SEQUENCE, &[der(SEQUENCE, &fields.concat()), der(SEQUENCE, &[]), der(3, &[0])].concat())
    }

    #[test]
    fn dates_and_names_are_read_as_rabbitmq_writes_them() {
        let subject = [
            attribute(&[0x55, 4, 10], 0x0c, "Café, Ltd".as_bytes()),
            attribute(&[0x55, 4, 17], 0x13, b"12345"),
            attribute(COMMON_NAME, 0x0c, b"#tom"),
        ];
        let read = Certificate::read(&certificate(&subject.concat())).unwrap();
        assert_eq!(read.subject, "CN=\\#tom,2.5.4.17=12345,O=Café\\, Ltd");
        assert_eq!(read.common_name.as_deref(), Some("#tom"));
        assert_eq!(read.dns_name.as_deref(), Some("client.example"));
        assert_eq!((read.not_before, read.not_after), (0, 2_524_608_001));
    }

    #[test]
    fn a_name_with_a_control_character_is_no_name() {
        for evil in [&b"admin\0.example"[..], b"a\nb"] {
            assert_eq!(Certificate::read(&certificate(&attribute(COMMON_NAME, 0x0c, evil))), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            at in 0_usize..300,
            bytes in proptest::collection::vec(any::<u8>(), 0..8),
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = Certificate::read(&noise);
            let mut damaged = certificate(&attribute(COMMON_NAME, 0x0c, b"tom"));
            for (place, byte) in damaged.iter_mut().skip(at).zip(bytes) {
                *place = byte;
            }
            let _ = Certificate::read(&damaged);
        }
    }
}
