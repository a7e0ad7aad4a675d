//! HTTP: health and metrics.
//!
//! Owns: the few pages, and the bounds that keep a strange peer harmless (header bytes, header time, connection time, number of
//! connections; bodies of requests are never read).
//! Promises: `/health/live` answers 200 while the process runs, `/health/ready` only when nothing is missing, `/metrics` what
//! Prometheus reads. Does not know: what makes the broker ready, and what the metrics mean.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::Stop;
use super::health::Readiness;
use crate::limits;
use crate::metrics::Metrics;

const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What stands at a path.
struct Page {
    status: StatusCode,
    content_type: &'static str,
    body: String,
}

/// The pages of one listener: a path to its page, `None` where there is none.
trait Pages: Send + Sync + 'static {
    fn page(&self, path: &str) -> Option<Page>;
}

struct Health {
    ready: Arc<Readiness>,
    /// Where RocketMQ clients find their name server, once it listens.
    name_server: Arc<OnceLock<String>>,
}

impl Pages for Health {
    fn page(&self, path: &str) -> Option<Page> {
        let (status, body) = match path {
            "/health/live" => (StatusCode::OK, "alive\n".to_owned()),
            "/health/ready" => readiness(&self.ready.missing()),
            // Clients without a name server address ask here, and take the whole body as the address. A unit's name may follow.
            _ if path == "/rocketmq/nsaddr" || path.starts_with("/rocketmq/nsaddr-") => {
                (StatusCode::OK, self.name_server.get()?.clone())
            }
            _ => return None,
        };
        Some(Page { status, content_type: TEXT, body })
    }
}

fn readiness(missing: &[&str]) -> (StatusCode, String) {
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready, missing: {}\n", missing.join(", ")))
    }
}

struct Numbers(Arc<Metrics>);

impl Pages for Numbers {
    fn page(&self, path: &str) -> Option<Page> {
        (path == "/metrics").then(|| match self.0.render() {
            Ok(body) => Page { status: StatusCode::OK, content_type: OPEN_METRICS, body },
            Err(_) => {
                let body = "a metric can not be written\n".to_owned();
                Page { status: StatusCode::INTERNAL_SERVER_ERROR, content_type: TEXT, body }
            }
        })
    }
}

/// Serves `/health/live`, `/health/ready` and `/rocketmq/nsaddr` on the listener of `http.listen` until `stop`.
pub async fn serve_health(
    listener: TcpListener,
    ready: Arc<Readiness>,
    name_server: Arc<OnceLock<String>>,
    metrics: Arc<Metrics>,
    stop: Stop,
) {
    serve(listener, "http.listen", Arc::new(Health { ready, name_server }), metrics, stop).await;
}

/// Serves `/metrics` on the listener of `metrics.listen` until `stop`.
pub async fn serve_metrics(listener: TcpListener, metrics: Arc<Metrics>, stop: Stop) {
    serve(listener, "metrics.listen", Arc::new(Numbers(Arc::clone(&metrics))), metrics, stop).await;
}

async fn serve(
    listener: TcpListener,
    key: &'static str,
    pages: Arc<dyn Pages>,
    metrics: Arc<Metrics>,
    stop: Stop,
) {
    let each_stop = stop.clone();
    super::serve(listener, key, limits::HTTP_CONNECTIONS_MAX, stop, metrics, move |stream, peer| {
        connection(stream, peer, Arc::clone(&pages), each_stop.clone())
    })
    .await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, pages: Arc<dyn Pages>, stop: Stop) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &*pages);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits::HTTP_HEADER_MS))
        .max_buf_size(limits::HTTP_HEADER_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!("http connection of {peer} ended: {error}");
            }
            return;
        }
        () = stop.requested() => {}
        // Also the end of a peer that never reads its answer.
        () = tokio::time::sleep(Duration::from_millis(limits::HTTP_CONNECTION_MS)) => {}
    }
    connection.as_mut().graceful_shutdown();
    // An answer on its way may arrive; a peer that does not take it is cut off.
    let _ = tokio::time::timeout(Duration::from_millis(limits::HTTP_GOODBYE_MS), connection).await;
}

fn answer(request: &Request<Incoming>, pages: &dyn Pages) -> Response<Full<Bytes>> {
    route(request.method(), request.uri().path(), pages)
}

fn route(method: &Method, path: &str, pages: &dyn Pages) -> Response<Full<Bytes>> {
    let Some(page) = pages.page(path) else {
        return respond(Page {
            status: StatusCode::NOT_FOUND,
            content_type: TEXT,
            body: "no such page\n".to_owned(),
        });
    };
    if !matches!(*method, Method::GET | Method::HEAD) {
        let body = "only GET and HEAD here\n".to_owned();
        let mut response = respond(Page { status: StatusCode::METHOD_NOT_ALLOWED, content_type: TEXT, body });
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    respond(page)
}

fn respond(page: Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(page.body)));
    *response.status_mut() = page.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Stopper;
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
        let ready = Readiness::new(["log"]);
        let name_server = Arc::new(OnceLock::new());
        let (found, known) = (Arc::clone(&name_server), Arc::clone(&ready));
        let task = tokio::spawn(serve_health(listener, known, found, Metrics::new(), stop));
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
