//! `dassie status`, `dassie list`, `dassie cluster` and `dassie backup`: a running broker, over its management API; `dassie restore` and `verify`.
//!
//! Owns: their arguments, tables for people, JSON for programs. Promises: one line that says what is wrong when nothing answers, and
//! exit code 1; wrong arguments are exit code 2; text of clients can not write lines or colours of its own into a terminal.
//! Does not know: the broker: it asks like any other tool.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::{Arg, ArgAction, ArgMatches, Command};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::backup;
use crate::process::Failure;

/// Where the broker is, unless somebody says otherwise.
const URL: &str = "http://127.0.0.1:15672";
/// Until it is connected.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Until the whole answer is there.
const ANSWER_TIME: Duration = Duration::from_secs(120);

/// What can be listed: word, path, columns with the member they show.
const LISTS: &[List] = &[
    List(
        "queues",
        "/api/queues",
        &["vhost", "name", "type", "durable", "messages_ready", "messages_unacknowledged", "consumers"],
    ),
    List(
        "connections",
        "/api/connections",
        &["name", "user", "vhost", "protocol", "state", "channels", "ssl", "user_provided_name"],
    ),
    List(
        "channels",
        "/api/channels",
        &[
            "name",
            "user",
            "vhost",
            "consumer_count",
            "prefetch_count",
            "messages_unacknowledged",
            "messages_unconfirmed",
            "confirm",
            "transactional",
        ],
    ),
    List(
        "consumers",
        "/api/consumers",
        &[
            "queue.vhost",
            "queue.name",
            "consumer_tag",
            "ack_required",
            "exclusive",
            "prefetch_count",
            "channel_details.name",
        ],
    ),
    List("bindings", "/api/bindings", &["vhost", "source", "destination_type", "destination", "routing_key"]),
    List("exchanges", "/api/exchanges", &["vhost", "name", "type", "durable", "auto_delete", "internal"]),
    List("topics", "/api/rocketmq/topics", &["name", "write_queues", "read_queues", "readable", "writable"]),
    List("groups", "/api/rocketmq/groups", &["name", "kind", "message_model", "clients"]),
    List(
        "clients",
        "/api/rocketmq/clients",
        &["client_id", "group", "kind", "peer_host", "peer_port", "language"],
    ),
    List("users", "/api/users", &["name", "tags"]),
    List("vhosts", "/api/vhosts", &["name"]),
    List("permissions", "/api/permissions", &["vhost", "user", "configure", "write", "read"]),
];

struct List(&'static str, &'static str, &'static [&'static str]);

/// Are these arguments (the program's name first) for this module? Else they are a broker's start.
#[must_use]
pub fn is_meant(arguments: &[OsString]) -> bool {
    const WORDS: [&str; 6] = ["status", "list", "cluster", "backup", "restore", "verify"];
    arguments.get(1).is_some_and(|word| WORDS.iter().any(|known| word == known)) && joins(arguments).is_none()
}

/// Where the cluster is that this node shall join, and the arguments of its start: `dassie cluster join NODE@HOST:PORT ...`.
#[must_use]
pub fn joins(arguments: &[OsString]) -> Option<(&str, Vec<OsString>)> {
    let [program, cluster, join, at, rest @ ..] = arguments else { return None };
    let at = at.to_str().filter(|at| at.contains(':') && cluster == "cluster" && join == "join")?;
    Some((at, std::iter::once(program).chain(rest).cloned().collect()))
}

/// Does what the arguments ask; gives what is to be printed.
///
/// # Errors
/// One line: wrong arguments, nobody answers, or the broker refuses.
pub fn run(arguments: &[OsString]) -> Result<String, Failure> {
    use clap::error::ErrorKind;
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(error.to_string());
        }
        Err(error) => {
            let text = error.to_string();
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("bad arguments");
            let first = first.strip_prefix("error: ").unwrap_or(first);
            return Err(Failure::usage(format!(
                "{first} (dassie status, list, cluster, backup, restore, verify: each has --help)"
            )));
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let path = |options: &ArgMatches, name: &str| {
        options
            .get_one::<PathBuf>(name)
            .cloned()
            .ok_or_else(|| Failure::usage(format!("--{name} is missing")))
    };
    match matches.subcommand() {
        Some(("backup", options)) => {
            runtime.block_on(backup::take::take(&Broker::of(options)?, &path(options, "to")?))
        }
        Some(("restore", options)) => {
            let (node, until) = (options.get_one::<u64>("node"), options.get_one::<String>("until"));
            let (from, to) = (path(options, "from")?, path(options, "data-dir")?);
            backup::restore::run(&from, &to, node.copied().unwrap_or(1), until.map(String::as_str))
        }
        Some(("verify", options)) => match path(options, "backup") {
            Ok(dir) => backup::verify::backup(&dir),
            Err(_) => backup::verify::store(&path(options, "data-dir")?),
        },
        Some(("list", options)) => {
            let what = options.get_one::<String>("what").map(String::as_str).unwrap_or_default();
            let Some(List(_, path, columns)) = LISTS.iter().find(|List(word, ..)| *word == what) else {
                return Err(Failure::usage(format!("there is no list of '{what}'")));
            };
            let broker = Broker::of(options)?;
            if options.get_flag("json") {
                return runtime.block_on(broker.get(path)).map(|rows| format!("{rows}\n"));
            }
            let rows = runtime.block_on(broker.get(&format!("{path}?columns={}", columns.join(","))))?;
            Ok(table(columns, rows.as_array().map_or(&[], Vec::as_slice)))
        }
        Some(("cluster", options)) => match options.subcommand() {
            Some(("leave", options)) => {
                let node = options.get_one::<u64>("node").copied().unwrap_or_default();
                let path = format!("/api/cluster/members/{node}");
                runtime.block_on(Broker::of(options)?.ask(Method::DELETE, &path))?;
                Ok(format!("node {node} is no member any more\n"))
            }
            Some((_, options)) => {
                let seen = runtime.block_on(Broker::of(options)?.get("/cluster"))?;
                Ok(if options.get_flag("json") { format!("{seen}\n") } else { cluster(&seen) })
            }
            None => Err(Failure::usage("nothing to do")),
        },
        Some((_, options)) => {
            let broker = Broker::of(options)?;
            let overview = runtime.block_on(broker.get("/api/overview"))?;
            let nodes = runtime.block_on(broker.get("/api/nodes"))?;
            if options.get_flag("json") {
                return Ok(format!("{}\n", serde_json::json!({"overview": overview, "nodes": nodes})));
            }
            Ok(status(&overview, nodes.get(0).unwrap_or(&Value::Null)))
        }
        None => Err(Failure::usage("nothing to do")),
    }
}

fn command() -> Command {
    let common = |command: Command| {
        command
            .arg(
                Arg::new("url")
                    .long("url")
                    .value_name("URL")
                    .help("Where the broker's http.listen is (DASSIE_URL; default http://127.0.0.1:15672)"),
            )
            .arg(Arg::new("user").long("user").value_name("NAME").help("Login (DASSIE_USER; default guest)"))
            .arg(
                Arg::new("password").long("password").value_name("PASSWORD").help(
                    "Password (better in DASSIE_PASSWORD: arguments are seen by others; default guest)",
                ),
            )
            .arg(
                Arg::new("json")
                    .long("json")
                    .action(ArgAction::SetTrue)
                    .help("Print what the broker answers, as JSON"),
            )
    };
    let directory = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .required(true)
            .value_name("DIRECTORY")
            .value_parser(clap::value_parser!(PathBuf))
            .help(help)
    };
    let words: Vec<&'static str> = LISTS.iter().map(|List(word, ..)| *word).collect();
    Command::new("dassie")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .subcommand(common(Command::new("status").about("Says how a running broker is")))
        .subcommand(
            Command::new("cluster")
                .about("Shows a cluster, takes members out and in")
                .after_help(
                    "dassie cluster join NODE@HOST:PORT [arguments of the new node's start]\n  \
                     lets a new node with an empty data directory into a running cluster, by the cluster.listen of any member",
                )
                .subcommand_required(true)
                .subcommand(common(
                    Command::new("status").about("Says who leads, and how far the others are"),
                ))
                .subcommand(
                    common(Command::new("leave").about("Takes a stopped member out; ask the leader")).arg(
                        Arg::new("node")
                            .required(true)
                            .value_name("NODE")
                            .value_parser(clap::value_parser!(u64))
                            .help("Its number"),
                    ),
                ),
        )
        .subcommand(
            common(Command::new("backup").about(
                "Takes a backup of a running broker (of a cluster: from its leader); what the directory has does not come again",
            ))
            .arg(directory("to", "Where the backup goes: an empty directory, or one with earlier backups")),
        )
        .subcommand(
            Command::new("restore")
                .about("Makes the data directory of a new broker out of a backup")
                .arg(directory("from", "Where the backup is"))
                .arg(directory("data-dir", "The new data directory: missing or empty"))
                .arg(
                    Arg::new("node")
                        .long("node")
                        .value_name("NODE")
                        .value_parser(clap::value_parser!(u64).range(1..))
                        .help("cluster.node of the new broker (default 1)"),
                )
                .arg(Arg::new("until").long("until").value_name("WHEN").help(
                    "Only what was in the log at this position of it, or at this time (2026-11-21T22:35:07Z, UTC)",
                )),
        )
        .subcommand(
            Command::new("verify")
                .about("Reads everything in a stopped broker's data directory, or in a backup, and names what is wrong")
                .arg(directory("data-dir", "The data directory").required(false).conflicts_with("backup"))
                .arg(directory("backup", "The directory of backups").required(false).required_unless_present("data-dir")),
        )
        .subcommand(
            common(Command::new("list").about("Lists what is in a running broker")).arg(
                Arg::new("what")
                    .required(true)
                    .value_name("WHAT")
                    .value_parser(words.clone())
                    .help(format!("One of: {}", words.join(", "))),
            ),
        )
}

/// Where to ask, and as whom.
pub(crate) struct Broker {
    /// `host:port`
    address: String,
    login: String,
}

impl Broker {
    fn of(options: &ArgMatches) -> Result<Self, Failure> {
        let given = |name: &str, variable: &str, default: &str| {
            let argument = options.get_one::<String>(name).cloned();
            argument.or_else(|| std::env::var(variable).ok()).unwrap_or_else(|| default.to_owned())
        };
        let url = given("url", "DASSIE_URL", URL);
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(Failure::usage(format!("{url}: the broker's HTTP has no TLS"))),
            Some(_) => return Err(Failure::usage(format!("{url} is no http:// address"))),
            None => &url,
        };
        let rest = rest.trim_end_matches('/');
        let wrong = || Failure::usage(format!("{url} is no address such as {URL}"));
        if rest.is_empty() || rest.contains(['/', '@', '?', ' ']) {
            return Err(wrong());
        }
        let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let address = if has_port { rest.to_owned() } else { format!("{rest}:15672") };
        let (user, password) =
            (given("user", "DASSIE_USER", "guest"), given("password", "DASSIE_PASSWORD", "guest"));
        Ok(Self { address, login: format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))) })
    }

    async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask(Method::GET, path).await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<Value, Failure> {
        let answer = async {
            let (status, body) = self.open(method, path, Bytes::new()).await?;
            let body = body.collect().await.map_err(|error| self.nobody(&error))?.to_bytes();
            Ok::<_, Failure>((status, body))
        };
        let (status, body) =
            timeout(ANSWER_TIME, answer).await.map_err(|_| self.nobody(&"no answer in time"))??;
        match (status, serde_json::from_slice::<Value>(&body)) {
            (StatusCode::OK, Ok(value)) => Ok(value),
            (StatusCode::NO_CONTENT, _) => Ok(Value::Null),
            (StatusCode::OK, Err(error)) => {
                Err(self.nobody(&format_args!("an answer that is no JSON: {error}")))
            }
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// Posts `body`; the answer, whose body is read as it comes.
    pub(crate) async fn post(&self, path: &str, body: Bytes) -> Result<Incoming, Failure> {
        let answer = timeout(ANSWER_TIME, self.open(Method::POST, path, body)).await;
        let (status, body) = answer.map_err(|_| self.nobody(&"no answer in time"))??;
        if status == StatusCode::OK {
            return Ok(body);
        }
        let body = timeout(ANSWER_TIME, body.collect()).await;
        let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
        Err(self.refusal(status, &body))
    }

    fn nobody(&self, cause: &dyn std::fmt::Display) -> Failure {
        let address = &self.address;
        Failure::new(format!("no broker answers at http://{address}: {cause} (is it running? see --url)"))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Failure {
        let parsed = serde_json::from_slice::<Value>(body).ok();
        let reason = parsed.and_then(|value| value.get("reason")?.as_str().map(str::to_owned));
        let reason = reason.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
        Failure::new(format!("the broker at http://{} refuses: {status}: {}", self.address, plain(&reason)))
    }

    async fn open(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Incoming), Failure> {
        let Self { address, login } = self;
        let stream = timeout(CONNECT_TIME, TcpStream::connect(address.as_str()))
            .await
            .map_err(|_| self.nobody(&"no connection in time"))?
            .map_err(|error| self.nobody(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.nobody(&error))?;
        // It ends with the runtime, or when its answer is read.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, address)
            .header(AUTHORIZATION, login)
            .body(Full::new(body))
            .map_err(|error| self.nobody(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| self.nobody(&error))?;
        Ok((answer.status(), answer.into_body()))
    }
}

/// Text without anything that moves a cursor.
fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn cell(row: &Value, column: &str) -> String {
    match column.split('.').try_fold(row, |value, name| value.get(name)) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => plain(text),
        Some(Value::Bool(flag)) => if *flag { "yes" } else { "no" }.to_owned(),
        Some(Value::Array(items)) => {
            let texts: Vec<String> =
                items.iter().map(|item| plain(item.as_str().unwrap_or_default())).collect();
            texts.join(",")
        }
        Some(other) => other.to_string(),
    }
}

/// Rows under their headings: numbers to the right, all else to the left.
fn table(columns: &[&str], rows: &[Value]) -> String {
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect()).collect();
    let heading = |column: &&str| column.replace(['_', '.'], " ");
    let headings: Vec<String> = columns.iter().map(heading).collect();
    let width = |at: usize| {
        let longest = cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        longest.max(headings[at].chars().count())
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let numeric: Vec<bool> = (0..columns.len())
        .map(|at| !cells.is_empty() && cells.iter().all(|row| row[at].parse::<f64>().is_ok()))
        .collect();
    let mut text = String::new();
    for row in std::iter::once(&headings).chain(&cells) {
        let mut line = String::new();
        for (at, value) in row.iter().enumerate() {
            let width = widths[at];
            let _ = match numeric[at] {
                true => write!(line, "{value:>width$}  "),
                false => write!(line, "{value:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn cluster(seen: &Value) -> String {
    let text = |name: &str| cell(seen, name);
    let mut out = String::new();
    let leader = match seen.get("leader").and_then(Value::as_u64) {
        Some(leader) => format!("node {leader} leads, term {}", text("term")),
        None => "no leader is known".to_owned(),
    };
    let _ = writeln!(
        out,
        "cluster {} ({}), as node {} sees it: {leader}",
        text("name"),
        text("cluster"),
        text("node")
    );
    let members = seen.get("members").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    out.push_str(&table(&["node", "role", "address", "lag_bytes", "last_contact_ms", "matched"], members));
    for trouble in seen.get("trouble").and_then(Value::as_array).into_iter().flatten() {
        let _ = writeln!(out, "! {}", plain(trouble.as_str().unwrap_or_default()));
    }
    out
}

fn status(overview: &Value, node: &Value) -> String {
    let text = |value: &Value, name: &str| cell(value, name);
    let number =
        |value: &Value, name: &str| value.pointer(name).map_or_else(|| "?".to_owned(), Value::to_string);
    let size = |name: &str| match node.get(name).and_then(Value::as_u64) {
        Some(bytes) if bytes >= 1 << 30 => {
            format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024)
        }
        Some(bytes) => format!("{} MiB", bytes >> 20),
        None => "unknown".to_owned(),
    };
    let seconds = node.get("uptime").and_then(Value::as_u64).unwrap_or(0) / 1000;
    let up = match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    };
    let mut out = String::new();
    let product = format!("{} {}", text(overview, "product_name"), text(overview, "product_version"));
    let _ = writeln!(out, "{product}, node {}, up {up}", text(overview, "node"));
    let _ = writeln!(
        out,
        "objects    {} connections, {} channels, {} queues, {} consumers, {} exchanges, {} RocketMQ topics",
        number(overview, "/object_totals/connections"),
        number(overview, "/object_totals/channels"),
        number(overview, "/object_totals/queues"),
        number(overview, "/object_totals/consumers"),
        number(overview, "/object_totals/exchanges"),
        number(overview, "/object_totals/rocketmq_topics"),
    );
    let _ = writeln!(
        out,
        "messages   {} ready, {} unacknowledged",
        number(overview, "/queue_totals/messages_ready"),
        number(overview, "/queue_totals/messages_unacknowledged"),
    );
    let _ = writeln!(
        out,
        "resources  memory {}, disk free {}, open files {} of {}",
        size("mem_used"),
        size("disk_free"),
        text(node, "fd_used"),
        text(node, "fd_total"),
    );
    for listener in overview.get("listeners").and_then(Value::as_array).into_iter().flatten() {
        let (protocol, port) = (text(listener, "protocol"), text(listener, "port"));
        let _ = writeln!(out, "listening  {protocol:<17} {} port {port}", text(listener, "ip_address"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_is_aligned_and_clients_can_not_paint_it() {
        let rows = [
            json!({"name": "short", "count": 5, "flag": true, "in": {"x": "a\u{1b}[31m\nb"}}),
            json!({"name": "much longer", "count": 1234}),
        ];
        let text = table(&["name", "count", "flag", "in.x"], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "name         count  flag  in x");
        assert_eq!(lines[1], "short            5  yes   a\\u{1b}[31m\\nb");
        assert_eq!(lines[2], "much longer   1234");
    }

    #[test]
    fn only_three_words_are_a_look_at_a_running_broker() {
        let meant = |all: &[&str]| is_meant(&all.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(meant(&["dassie", "cluster", "status"]) && meant(&["dassie", "cluster", "join"]));
        assert!(!meant(&["dassie", "cluster", "join", "1@a:7673", "--data-dir", "d"]));
        assert!(meant(&["dassie", "status"]) && meant(&["dassie", "list", "queues"]));
        assert!(!meant(&["dassie"]) && !meant(&["dassie", "--config", "status"]));
    }

    #[test]
    fn wrong_arguments_and_addresses_are_one_line_and_exit_code_2() {
        for wrong in [
            &["dassie", "list"][..],
            &["dassie", "list", "colours"],
            &["dassie", "status", "--url", "https://x"],
            &["dassie", "status", "--url", "http://u:p@x:1/"],
            &["dassie", "status", "--verbose"],
            &["dassie", "cluster"],
            &["dassie", "cluster", "leave", "x"],
        ] {
            let failure = run(&wrong.iter().map(OsString::from).collect::<Vec<_>>()).unwrap_err();
            assert_eq!(failure.code, 2, "{failure}");
            assert!(!failure.to_string().contains('\n'), "{failure}");
        }
    }
}
