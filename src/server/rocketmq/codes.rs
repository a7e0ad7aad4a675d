//! Request codes that are not served, and why.
//!
//! Owns: one reason for each. Promises: a code stands here exactly when it is refused (a test asks all of them), and the table of
//! the compatibility page says the same.
//! Does not know: how the others are served.

use dassie_rocketmq::RequestCode;

/// Why a code of Apache's is refused; `None`: it is served.
pub(super) const fn why_not(code: RequestCode) -> Option<&'static str> {
    Some(match code.code() {
        39 | 40 | 220 | 221 | 326 | 905 | 1008 => "only brokers and controllers send it",
        13 | 22 | 23 | 27 | 47 | 209..=214 | 301 | 302 | 308 => "no client or tool that is known sends it",
        25 | 318 => "settings are read at the start",
        43 | 45 | 402 => "it is for brokers that copy another's tables; here the log is replicated",
        50..=54 | 3001..=3010 => "users and permissions stand in the configuration",
        60 | 61 | 370 | 5001 => "timer messages are not there yet",
        103 | 104 | 217 | 322 => {
            "the name server inside knows its own broker, whose topics are routable at once"
        }
        306 | 316 | 329 => "what is expired goes by itself; there is nothing to clean on demand",
        317 => "ask by group (208)",
        321 | 353 | 354 | 355 => "it shows a storage engine that is not here",
        323 => "a transaction whose producers were asked too often has ended",
        400 | 401 => "clients share the queues among themselves",
        513 => "static topics are not there",
        901..=904 | 906..=908 => "nodes replicate one log and know each other without it",
        1001..=1007 | 1009..=1018 => "there is no controller: nodes elect their leader themselves",
        2001..=2004 => "reads of old messages are not throttled",
        200_050..=200_056 | 200_151 => "POP is not there yet",
        200_070..=200_079 => "lite topics are not there yet",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Codes of the first column of the page's table, and whether their row says that they are refused.
    fn table() -> BTreeMap<i32, bool> {
        let page = include_str!("../../docs/compatibility.md");
        let (_, section) = page.split_once("## RocketMQ remoting: request codes").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let mut codes = BTreeMap::new();
        for row in section.lines().filter_map(|line| line.strip_prefix("| ")) {
            let Some((first, rest)) = row.split_once(" | ") else { continue };
            for part in first.split([',', ';', ' ']).filter(|part| !part.is_empty()) {
                let mut ends = part.split('-').map(str::parse::<i32>);
                let Some(Ok(from)) = ends.next() else { continue };
                let to = ends.next().map_or(from, Result::unwrap);
                for code in from..=to {
                    // A code with two rows is served in part: one of them says so.
                    let refused = rest.starts_with("refused");
                    codes.entry(code).and_modify(|all| *all &= refused).or_insert(refused);
                }
            }
        }
        codes
    }

    #[test]
    fn every_code_of_apaches_stands_on_the_compatibility_page_with_what_it_gets() {
        let table = table();
        for code in RequestCode::ALL {
            let refused = why_not(*code).is_some();
            assert_eq!(table.get(&code.code()), Some(&refused), "{code}");
        }
    }
}
