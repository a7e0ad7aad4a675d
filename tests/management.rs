//! The management API and the command line that looks at a broker, against the real binary.
//!
//! Owns: a broker in a process, an HTTP client and an AMQP client of a few lines each. Promises: no sleeps: a test waits for an answer
//! or a line of the log, within a deadline. Does not know: how answers are made.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// A broker that is ready, and ends with the test.
struct Broker {
    child: Child,
    log: BufReader<ChildStderr>,
    http: u16,
    amqp: u16,
    metrics: u16,
    _directory: tempfile::TempDir,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// An HTTP answer: status and body.
type Answer = (u16, String);

impl Broker {
    fn start(configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("dassie.toml");
        std::fs::write(&file, configuration).expect("a file");
        let (http, amqp, metrics) = (free_port(), free_port(), free_port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_dassie"));
        command.arg("--config").arg(&file).arg("--data-dir").arg(directory.path().join("data"));
        for setting in [
            format!("http.listen=127.0.0.1:{http}"),
            format!("amqp.listen=127.0.0.1:{amqp}"),
            format!("metrics.listen=127.0.0.1:{metrics}"),
            "rocketmq.listen=127.0.0.1:0".to_owned(),
            "rocketmq.name_server_listen=".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let log = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut broker = Self { child, log, http, amqp, metrics, _directory: directory };
        broker.wait_for("ready in ");
        broker
    }

    /// Reads the log up to a line with `text`; gives that line.
    fn wait_for(&mut self, text: &str) -> String {
        let mut read = String::new();
        loop {
            let mut line = String::new();
            let count = self.log.read_line(&mut line).expect("a readable log");
            assert!(count > 0, "ended before '{text}':\n{read}");
            if line.contains(text) {
                return line;
            }
            read.push_str(&line);
        }
    }

    fn call(&self, method: &str, path: &str, login: &str, headers: &str, body: &str) -> Answer {
        http(
            self.http,
            method,
            path,
            &format!("Authorization: Basic {}\r\n{headers}", STANDARD.encode(login)),
            body,
        )
    }

    fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, "guest:guest", "", "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }

    fn put(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.call(method, path, "guest:guest", "", &body.to_string())
    }

    fn status(&self, method: &str, path: &str, body: &Value) -> u16 {
        self.put(method, path, body).0
    }

    fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dassie"));
        command.args(arguments).arg("--url").arg(format!("http://127.0.0.1:{}", self.http));
        command.output().expect("it runs")
    }

    /// An AMQP connection that is open, with a channel, a queue `q` and a consumer `tag` on it.
    fn consumer(&self, name: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.amqp)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"AMQP\x00\x00\x09\x01").expect("it reads");
        method(&mut stream);
        let mut properties = Vec::new();
        short(&mut properties, "connection_name");
        properties.push(b'S');
        long(&mut properties, name.as_bytes());
        let mut start_ok = vec![0, 10, 0, 11];
        long(&mut start_ok, &properties);
        short(&mut start_ok, "PLAIN");
        long(&mut start_ok, b"\0guest\0guest");
        short(&mut start_ok, "en_US");
        send(&mut stream, 0, &start_ok);
        method(&mut stream);
        send(&mut stream, 0, &[0, 10, 0, 31, 7, 255, 0, 2, 0, 0, 0, 0]);
        send(&mut stream, 0, b"\x00\x0a\x00\x28\x01/\x00\x00");
        assert_eq!(method(&mut stream)[..4], [0, 10, 0, 41], "connection.open-ok");
        send(&mut stream, 1, b"\x00\x14\x00\x0a\x00");
        assert_eq!(method(&mut stream)[..4], [0, 20, 0, 11], "channel.open-ok");
        send(&mut stream, 1, b"\x00\x32\x00\x0a\x00\x00\x01q\x02\x00\x00\x00\x00");
        assert_eq!(method(&mut stream)[..4], [0, 50, 0, 11], "queue.declare-ok");
        send(&mut stream, 1, b"\x00\x3c\x00\x14\x00\x00\x01q\x03tag\x00\x00\x00\x00\x00");
        assert_eq!(method(&mut stream)[..4], [0, 60, 0, 21], "basic.consume-ok");
        stream
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn http(port: u16, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it answers");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if chunked { unchunk(body) } else { body.to_owned() })
}

fn unchunk(mut rest: &str) -> String {
    let mut text = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        text.push_str(&more[..size]);
        rest = more[size..].strip_prefix("\r\n").expect("the end of a chunk");
    }
    text
}

fn short(out: &mut Vec<u8>, text: &str) {
    out.push(u8::try_from(text.len()).expect("short"));
    out.extend_from_slice(text.as_bytes());
}

fn long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("not that long").to_be_bytes());
    out.extend_from_slice(bytes);
}

fn send(stream: &mut TcpStream, channel: u16, payload: &[u8]) {
    let mut frame = vec![1];
    frame.extend_from_slice(&channel.to_be_bytes());
    long(&mut frame, payload);
    frame.push(0xCE);
    stream.write_all(&frame).expect("it reads");
}

fn method(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 7];
    stream.read_exact(&mut head).expect("a frame");
    let [_, _, _, size @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes(size) as usize + 1];
    stream.read_exact(&mut payload).expect("a payload");
    payload
}

#[test]
fn who_may_not_look_is_told_so_in_rabbitmqs_words() {
    let broker = Broker::start(
        r#"
        [[users]]
        name = "root"
        password = "root"
        tags = ["administrator"]
        permissions = [{ vhost = "/", configure = ".*", write = ".*", read = ".*" }]
        [[users]]
        name = "plain"
        password = "plain"
        permissions = [{ vhost = "/", configure = ".*", write = ".*", read = ".*" }]
        [[users]]
        name = "some"
        password = "some"
        tags = ["management"]
        permissions = [{ vhost = "/", configure = "^mine", write = "", read = ".*" }]
        "#,
    );
    let call = |method, path, login| broker.call(method, path, login, "", "{}");
    let refused = |reason: &str| (401, json!({"error": "not_authorised", "reason": reason}).to_string());
    assert_eq!(call("GET", "/api/whoami", "root:wrong"), refused("Login failed"));
    assert_eq!(call("GET", "/api/whoami", "nobody:x"), refused("Login failed"));
    assert_eq!(call("GET", "/api/whoami", "plain:plain"), refused("Not management user"));
    assert_eq!(call("GET", "/api/users", "some:some"), refused("Not administrator user"));
    assert_eq!(call("GET", "/api/nodes", "some:some"), refused("Not monitor user"));
    assert_eq!(http(broker.http, "GET", "/api/whoami", "", ""), refused("Login failed"));
    let (status, body) = call("GET", "/api/whoami", "some:some");
    assert_eq!((status, body.contains("\"name\":\"some\"")), (200, true), "{body}");
    assert_eq!(call("PUT", "/api/queues/%2F/mine", "some:some").0, 201);
    let (status, body) = call("PUT", "/api/queues/%2F/yours", "some:some");
    assert!(status == 401 && body.contains("ACCESS_REFUSED - access to queue 'yours'"), "{body}");
    assert_eq!(call("DELETE", "/api/vhosts/%2F", "some:some"), refused("Not administrator user"));
    let missing = json!({"error": "Object Not Found", "reason": "Not Found"}).to_string();
    assert_eq!(call("GET", "/api/nothing", "root:root"), (404, missing.clone()));
    assert_eq!(call("GET", "/api/queues/%2F/none", "root:root"), (404, missing));
    assert_eq!(call("POST", "/api/overview", "root:root").0, 405);
    assert_eq!(call("PUT", "/api/users/new", "root:root").0, 405);
    let metrics = http(broker.metrics, "GET", "/metrics", "", "").1;
    assert!(metrics.contains("rabbitmq_auth_attempts_failed_total{protocol=\"http\"} 2"), "{metrics}");
    let (_, definitions) = call("GET", "/api/definitions", "root:root");
    let definitions: Value = serde_json::from_str(&definitions).expect("JSON");
    assert_eq!(definitions["users"].as_array().map(Vec::len), Some(3), "{definitions}");
    assert!(definitions["users"][0]["password_hash"].as_str().is_some_and(|hash| hash.len() > 40));
    assert!(definitions["permissions"].to_string().contains("\"configure\":\"^mine\""));
}

#[test]
fn a_connection_is_listed_with_its_consumers_and_closed_with_the_reason() {
    let mut broker = Broker::start("");
    let mut stream = broker.consumer("my program");
    // With a slash behind it, as some tools ask.
    let connections = broker.get("/api/connections/");
    let connection = &connections[0];
    let local = stream.local_addr().expect("an address");
    assert_eq!(connection["name"], format!("{local} -> 127.0.0.1:{}", broker.amqp), "{connection}");
    for (name, value) in [
        ("user_provided_name", json!("my program")),
        ("client_properties", json!({"connection_name": "my program"})),
        ("state", json!("running")),
        ("user", json!("guest")),
        ("vhost", json!("/")),
        ("channels", json!(1)),
        ("ssl", json!(false)),
        ("protocol", json!("AMQP 0-9-1")),
        ("auth_mechanism", json!("PLAIN")),
        ("peer_port", json!(local.port())),
    ] {
        assert_eq!(connection[name], value, "{name} of {connection}");
    }
    let channels = broker.get("/api/channels");
    assert_eq!(channels[0]["consumer_count"], 1, "{channels}");
    let consumers = broker.get("/api/consumers/%2F");
    assert_eq!(consumers[0]["consumer_tag"], "tag", "{consumers}");
    assert_eq!(consumers[0]["queue"], json!({"name": "q", "vhost": "/"}));
    assert_eq!(broker.get("/api/queues/%2F/q")["consumers"], 1);
    let listed = broker.cli(&["list", "consumers"]);
    let text = String::from_utf8(listed.stdout).expect("text");
    assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("/") && line.contains("tag")), "{text}");
    let path = format!(
        "/api/connections/{}",
        connection["name"].as_str().expect("a name").replace(' ', "%20").replace('>', "%3E")
    );
    assert_eq!(broker.call("DELETE", &path, "guest:guest", "X-Reason: go home\r\n", "").0, 204);
    let close = method(&mut stream);
    assert_eq!(close[..6], [0, 10, 0, 50, 1, 64], "connection.close 320");
    assert!(String::from_utf8_lossy(&close).contains("CONNECTION_FORCED - go home"), "{close:?}");
    send(&mut stream, 0, &[0, 10, 0, 51]);
    broker.wait_for("AMQP connection closed: by the broker: 320 CONNECTION_FORCED - go home");
    assert_eq!(broker.get("/api/connections"), json!([]));
    assert_eq!(broker.call("DELETE", &path, "guest:guest", "", "").0, 404);
}

#[test]
fn queues_exchanges_and_bindings_are_made_looked_at_and_removed() {
    let broker = Broker::start("");
    let durable = json!({"durable": true, "arguments": {"note": "mine"}});
    assert_eq!(broker.status("PUT", "/api/queues/%2F/one", &durable), 201);
    assert_eq!(broker.status("PUT", "/api/queues/%2F/one", &durable), 204);
    let (status, body) = broker.put("PUT", "/api/queues/%2F/one", &json!({}));
    assert!(status == 400 && body.contains("inequivalent arg 'durable' for queue 'one'"), "{body}");
    assert_eq!(broker.status("PUT", "/api/queues/%2F/one", &json!({"durable": "perhaps"})), 400);
    assert_eq!(broker.call("PUT", "/api/queues/%2F/two", "guest:guest", "", "{").0, 400);
    assert_eq!(broker.status("PUT", "/api/exchanges/%2F/x", &json!({"type": "topic"})), 201);
    assert_eq!(broker.status("PUT", "/api/exchanges/%2F/y", &json!({"type": "colour"})), 400);
    assert_eq!(broker.status("PUT", "/api/exchanges/%2F/amq.mine", &json!({"type": "direct"})), 401);
    let bind = json!({"routing_key": "a/b", "arguments": {}});
    assert_eq!(broker.status("POST", "/api/bindings/%2F/e/x/q/one", &bind), 201);
    let bindings = broker.get("/api/queues/%2F/one/bindings");
    assert_eq!(bindings.as_array().map(Vec::len), Some(2), "{bindings}");
    assert_eq!(bindings[1]["properties_key"], "a%2Fb");
    assert_eq!(broker.get("/api/exchanges/%2F/x/bindings/source")[0]["destination"], "one");
    assert_eq!(broker.get("/api/bindings/%2F").as_array().map(Vec::len), Some(2));
    let exchanges = broker.get("/api/exchanges/%2F?columns=name");
    assert!(
        exchanges
            .as_array()
            .is_some_and(|all| all.contains(&json!({"name": ""})) && all.contains(&json!({"name": "x"})))
    );

    let publish = json!({
        "routing_key": "a/b", "payload": "aGVsbG8=", "payload_encoding": "base64",
        "properties": {"delivery_mode": 2, "content_type": "text/plain", "headers": {"n": 1}},
    });
    let routed = broker.put("POST", "/api/exchanges/%2F/x/publish", &publish);
    assert_eq!(routed, (200, json!({"routed": true}).to_string()));
    let lost =
        json!({"routing_key": "nowhere", "payload": "", "payload_encoding": "string", "properties": {}});
    assert_eq!(
        broker.put("POST", "/api/exchanges/%2F/x/publish", &lost),
        (200, json!({"routed": false}).to_string())
    );
    assert_eq!(broker.get("/api/queues/%2F/one")["messages_ready"], 1);
    let get = |ackmode: &str| {
        let wish = json!({"count": 5, "ackmode": ackmode, "encoding": "auto"});
        let (status, body) = broker.put("POST", "/api/queues/%2F/one/get", &wish);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).expect("JSON")
    };
    let got = get("ack_requeue_true");
    assert_eq!((&got[0]["payload"], &got[0]["redelivered"]), (&json!("hello"), &json!(false)), "{got}");
    assert_eq!(got[0]["properties"], publish["properties"]);
    assert_eq!(got[0]["routing_key"], "a/b");
    assert_eq!(get("ack_requeue_false")[0]["redelivered"], true);
    assert_eq!(get("ack_requeue_false"), json!([]));
    assert_eq!(broker.status("POST", "/api/exchanges/%2F/x/publish", &publish), 200);
    assert_eq!(broker.status("DELETE", "/api/queues/%2F/one/contents", &Value::Null), 204);
    assert_eq!(broker.get("/api/queues/%2F/one")["messages"], 0);

    assert_eq!(broker.status("DELETE", "/api/bindings/%2F/e/x/q/one/a%2Fb", &Value::Null), 204);
    assert_eq!(broker.get("/api/bindings/%2F/e/x/q/one"), json!([]));
    assert_eq!(broker.status("DELETE", "/api/queues/%2F/one", &Value::Null), 204);
    assert_eq!(broker.status("DELETE", "/api/queues/%2F/one", &Value::Null), 404);
    assert_eq!(broker.status("DELETE", "/api/exchanges/%2F/x", &Value::Null), 204);
    assert_eq!(broker.status("PUT", "/api/vhosts/other", &Value::Null), 201);
    assert_eq!(broker.get("/api/vhosts").as_array().map(Vec::len), Some(2));
    assert_eq!(broker.status("DELETE", "/api/vhosts/other", &Value::Null), 204);
    assert_eq!(broker.get("/api/aliveness-test/%2F"), json!({"status": "ok"}));
    assert_eq!(broker.get("/api/health/checks/alarms"), json!({"status": "ok"}));
    let port = broker.amqp;
    assert_eq!(broker.get(&format!("/api/health/checks/port-listener/{port}"))["port"], port);
    assert_eq!(broker.call("GET", "/api/health/checks/port-listener/1", "guest:guest", "", "").0, 503);
    assert_eq!(broker.get("/api/overview")["product_name"], "Dassie");
}

#[test]
fn long_lists_come_in_pages_and_whole() {
    let broker = Broker::start("");
    for number in 0..300 {
        let path = format!("/api/queues/%2F/q{number:03}");
        assert_eq!(broker.status("PUT", &path, &json!({})), 201);
    }
    let all = broker.get("/api/queues?columns=name");
    let all = all.as_array().expect("a list");
    assert_eq!((all.len(), &all[0], &all[299]), (300, &json!({"name": "q000"}), &json!({"name": "q299"})));
    let page = broker.get("/api/queues?page=2&page_size=20&name=Q1&pagination=true&columns=name");
    assert_eq!(page["items"][0], json!({"name": "q120"}), "{page}");
    for (name, value) in
        [("total_count", 300), ("filtered_count", 100), ("item_count", 20), ("page_count", 5)]
    {
        assert_eq!(page[name], value, "{name}");
    }
    let some = broker.get("/api/queues?page=1&name=%5Eq00%5B0-2%5D&use_regex=true");
    assert_eq!(some["filtered_count"], 3);
    for wrong in ["page=0", "page=x", "page=99", "page=1&page_size=1000", "page=1&name=(&use_regex=true"] {
        assert_eq!(
            broker.call("GET", &format!("/api/queues?{wrong}"), "guest:guest", "", "").0,
            400,
            "{wrong}"
        );
    }
}

#[test]
fn the_command_line_looks_at_a_broker_and_says_when_there_is_none() {
    let broker = Broker::start("");
    assert_eq!(broker.status("PUT", "/api/queues/%2F/orders", &json!({"durable": true})), 201);
    let text = |output: &Output| String::from_utf8(output.stdout.clone()).expect("text");
    let status = broker.cli(&["status"]);
    assert!(status.status.success(), "{status:?}");
    let shown = text(&status);
    assert!(shown.starts_with("Dassie ") && shown.contains(" 1 queues,"), "{shown}");
    let queues = text(&broker.cli(&["list", "queues"]));
    let lines: Vec<&str> = queues.lines().collect();
    assert!(lines[0].starts_with("vhost  name"), "{queues}");
    assert!(lines[1].starts_with("/      orders  classic  yes"), "{queues}");
    let rows: Value = serde_json::from_str(&text(&broker.cli(&["list", "queues", "--json"]))).expect("JSON");
    assert_eq!(rows[0]["name"], "orders");
    for what in [
        "connections",
        "channels",
        "consumers",
        "bindings",
        "exchanges",
        "topics",
        "groups",
        "clients",
        "users",
        "vhosts",
        "permissions",
    ] {
        let output = broker.cli(&["list", what]);
        assert!(output.status.success() && !output.stdout.is_empty(), "{what}: {output:?}");
    }
    let one_line = |output: &Output| {
        let text = String::from_utf8(output.stderr.clone()).expect("text");
        assert!(text.starts_with("dassie: ") && text.lines().count() == 1, "{text}");
        text
    };
    let refused = broker.cli(&["status", "--password", "wrong"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(one_line(&refused).contains("401 Unauthorized: Login failed"));
    let wrong = broker.cli(&["list", "colours"]);
    assert_eq!(wrong.status.code(), Some(2));
    one_line(&wrong);
    let nobody = Command::new(env!("CARGO_BIN_EXE_dassie"))
        .args(["status", "--url", &format!("http://127.0.0.1:{}", free_port())])
        .output()
        .expect("it runs");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(one_line(&nobody).contains("no broker answers at http://127.0.0.1:"));
}

#[test]
fn a_body_that_is_too_long_or_from_a_stranger_is_not_read() {
    let broker = Broker::start("");
    let login = format!("Authorization: Basic {}\r\n", STANDARD.encode("guest:guest"));
    let long =
        format!("PUT /api/queues/%2F/q HTTP/1.1\r\nHost: x\r\n{login}Content-Length: 99999999\r\n\r\n");
    let stranger = "PUT /api/queues/%2F/q HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n";
    for (request, status) in [(long.as_str(), "413"), (stranger, "401")] {
        let mut stream = TcpStream::connect(("127.0.0.1", broker.http)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        assert_eq!(&head[9..], status.as_bytes(), "{request}");
    }
}
