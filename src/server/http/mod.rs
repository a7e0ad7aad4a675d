//! HTTP: health, metrics, management.
//!
//! Owns: the listeners, and the bounds that keep a strange peer harmless (header and body bytes, header and body time, connection
//! time, number of connections).
//! Promises: `/health/live` answers 200 while the process runs, `/health/ready` only when nothing is missing, `/metrics` what
//! Prometheus reads; a body is read only for somebody who may ask for something.
//! Does not know: what makes the broker ready, what the metrics mean, what management can do.

mod body;
pub mod management;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::Stop;
use crate::alarms::Raised;
use crate::limits;
use crate::metrics::Metrics;
use body::Body;
use management::{Asked, Management};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What stands at a path.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

/// What a listener serves.
#[derive(Clone)]
enum Site {
    /// `http.listen`
    Management(Arc<Management>),
    /// `metrics.listen`
    Numbers(Arc<Metrics>),
}

impl Site {
    /// A page that needs no login; `None` where there is none.
    async fn page(&self, path: &str) -> Option<Page> {
        let (status, content_type, body) = match (self, path) {
            (Self::Management(_), "/health/live") => (StatusCode::OK, TEXT, "alive\n".to_owned()),
            (Self::Management(site), "/health/ready") => {
                let (status, body) = readiness(&site.ready.missing(), site.ready.raised());
                (status, TEXT, body)
            }
            (Self::Management(site), "/cluster") => match site.cluster.get() {
                Some(desk) => (StatusCode::OK, JSON, format!("{}\n", desk.status().await)),
                None => (StatusCode::SERVICE_UNAVAILABLE, TEXT, "this node has no cluster yet\n".to_owned()),
            },
            (Self::Numbers(metrics), "/metrics") => match metrics.render() {
                Ok(body) => (StatusCode::OK, OPEN_METRICS, body),
                Err(_) => {
                    let body = "a metric can not be written\n".to_owned();
                    (StatusCode::INTERNAL_SERVER_ERROR, TEXT, body)
                }
            },
            // Clients without a name server address ask here, and take the whole body as the address. A unit's name may follow.
            (Self::Management(site), _)
                if path == "/rocketmq/nsaddr" || path.starts_with("/rocketmq/nsaddr-") =>
            {
                (StatusCode::OK, TEXT, site.name_server.get()?.clone())
            }
            _ => return None,
        };
        Some(Page { status, content_type, body })
    }
}

fn readiness(missing: &[&str], raised: Raised) -> (StatusCode, String) {
    if missing.is_empty() && raised.any() {
        (StatusCode::OK, format!("ready, but {}: publishers wait\n", raised.reason()))
    } else if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, missing: {}\n", missing.join(", ")))
    }
}

/// Serves health and management on a listener of `http.listen` until `stop`.
pub async fn serve_management(
    listener: TcpListener,
    management: Arc<Management>,
    metrics: Arc<Metrics>,
    stop: Stop,
) {
    serve(listener, "http.listen", Site::Management(management), metrics, stop).await;
}

/// Serves `/metrics` on a listener of `metrics.listen` until `stop`.
pub async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>, stop: Stop) {
    serve(listener, "metrics.listen", Site::Numbers(Arc::clone(&metrics)), metrics, stop).await;
}

async fn serve(listener: TcpListener, key: &'static str, site: Site, metrics: Arc<Metrics>, stop: Stop) {
    let each_stop = stop.clone();
    super::serve(listener, key, limits::HTTP_CONNECTIONS_MAX, stop, metrics, move |stream, peer| {
        connection(stream, peer, site.clone(), each_stop.clone())
    })
    .await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, site: Site, stop: Stop) {
    let under_way = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&under_way);
    let service = service_fn(move |request| {
        let (site, told) = (site.clone(), Arc::clone(&told));
        async move {
            let mut response = answer(request, &site, peer).await;
            response.body_mut().tell(&told);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits::HTTP_HEADER_MS))
        .max_buf_size(limits::HTTP_HEADER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!("http connection of {peer} ended: {error}");
                }
                return;
            }
            () = stop.requested() => break,
            // Also the end of a peer that never reads its answer.
            () = tokio::time::sleep(Duration::from_millis(limits::HTTP_CONNECTION_MS)) => {
                if !under_way.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    // An answer on its way may arrive; a peer that does not take it is cut off.
    let _ = timeout(Duration::from_millis(limits::HTTP_GOODBYE_MS), connection).await;
}

async fn answer(request: Request<Incoming>, site: &Site, peer: SocketAddr) -> Response<Body> {
    let path = request.uri().path();
    match site {
        Site::Management(management) if path == "/api" || path.starts_with("/api/") => {
            manage(request, management, peer).await
        }
        _ => route(request.method(), path, site).await,
    }
}

async fn manage(
    request: Request<Incoming>,
    management: &Arc<Management>,
    peer: SocketAddr,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let mut asked = Asked {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body: Bytes::new(),
        peer,
    };
    // Strangers are answered before their body is read.
    if !matches!(asked.method, Method::GET | Method::HEAD | Method::DELETE) && management.knows(&asked) {
        let too_long = || {
            let text = format!("the body is broken, or longer than {} bytes\n", limits::HTTP_BODY_MAX);
            text_page(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        if body.size_hint().lower() > limits::HTTP_BODY_MAX as u64 {
            return too_long();
        }
        let whole = Limited::new(body, limits::HTTP_BODY_MAX).collect();
        match timeout(Duration::from_millis(limits::HTTP_WAIT_MS), whole).await {
            Ok(Ok(whole)) => asked.body = whole.to_bytes(),
            Ok(Err(_)) => return too_long(),
            Err(_) => {
                return text_page(
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not arrive in time\n".to_owned(),
                );
            }
        }
    }
    management.answer(asked).await
}

fn text_page(status: StatusCode, body: String) -> Response<Body> {
    respond(Page { status, content_type: TEXT, body })
}

async fn route(method: &Method, path: &str, site: &Site) -> Response<Body> {
    let Some(page) = site.page(path).await else {
        return text_page(StatusCode::NOT_FOUND, "no such page\n".to_owned());
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = text_page(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD here\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    respond(page)
}

fn respond(page: Page) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Bytes::from(page.body)));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;

    use crate::clock::SystemClock;
    use crate::security::Realm;
    use crate::security::users::Users;
    use crate::server::Stopper;
    use crate::server::health::Readiness;
    use crate::server::registry::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    struct Running {
        address: SocketAddr,
        stopper: Stopper,
        ready: Arc<Readiness>,
        name_server: Arc<OnceLock<String>>,
        task: JoinHandle<()>,
    }

    async fn start() -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stopper, stop) = Stopper::new();
        let ready = Readiness::new(["log"], crate::alarms::Alarms::new());
        let name_server = Arc::new(OnceLock::new());
        let clock = Arc::new(SystemClock::new());
        let metrics = Metrics::new();
        let management = Arc::new(Management {
            ready: Arc::clone(&ready),
            realm: Realm::new(Users::only_guest()),
            registry: Registry::new(clock.clone()),
            metrics: Arc::clone(&metrics),
            clock,
            node: "dassie@here".to_owned(),
            name_server: Arc::clone(&name_server),
            broker: OnceLock::new(),
            cluster: OnceLock::new(),
            backups: OnceLock::new(),
        });
        let task = tokio::spawn(serve_management(listener, management, metrics, stop));
        Running { address, stopper, ready, name_server, task }
    }

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // A peer cut off in the middle of too long a header may see a reset behind the answer.
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn health_says_what_is_missing_and_then_that_nothing_is() {
        let running = start().await;
        assert!(ask(running.address, &get("/health/live")).await.starts_with("HTTP/1.1 200"));
        let answer = ask(running.address, &get("/health/ready")).await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.ends_with("not ready, missing: log\n"),
            "{answer}"
        );
        running.ready.up("log");
        let answer = ask(running.address, &get("/health/ready?x=1")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nready\n"), "{answer}");
        running.stopper.stop();
        running.task.await.unwrap();
    }

    #[tokio::test]
    async fn rocketmq_clients_find_their_name_server_once_it_listens() {
        let running = start().await;
        assert!(ask(running.address, &get("/rocketmq/nsaddr")).await.starts_with("HTTP/1.1 404"));
        running.name_server.set("mq.example:9876".to_owned()).unwrap();
        let answer = ask(running.address, &get("/rocketmq/nsaddr-instance?nofix=1")).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nmq.example:9876"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn other_paths_are_404_and_other_methods_405() {
        let running = start().await;
        assert!(ask(running.address, &get("/")).await.starts_with("HTTP/1.1 404"));
        assert!(ask(running.address, &get("/metrics")).await.starts_with("HTTP/1.1 404"));
        let post =
            "POST /health/live HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
        let answer = ask(running.address, post).await;
        assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET, HEAD"), "{answer}");
        let head =
            ask(running.address, "HEAD /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn too_long_a_header_and_no_http_at_all_are_refused() {
        let running = start().await;
        let long =
            format!("GET /health/live HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(2 * limits::HTTP_HEADER_MAX));
        assert!(!ask(running.address, &long).await.starts_with("HTTP/1.1 200"));
        assert!(ask(running.address, "AMQP\0\0\u{9}\u{1}\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        assert!(ask(running.address, &get("/health/live")).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_cut_off() {
        let running = start().await;
        let mut silent = TcpStream::connect(running.address).await.unwrap();
        silent.write_all(b"GET /health").await.unwrap();
        let mut rest = Vec::new();
        let _ = silent.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn stopping_does_not_wait_for_idle_connections() {
        let running = start().await;
        let mut idle = TcpStream::connect(running.address).await.unwrap();
        idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut some = [0; 12];
        idle.read_exact(&mut some).await.unwrap();
        running.stopper.stop();
        running.task.await.unwrap();
    }
}
