//! Tells load balancers whether this node has endpoints of their Services: an HTTP server on each `healthCheckNodePort`, with
//! upstream's answers.

use std::{collections::HashMap, io, net::TcpListener, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{objects::ServiceName, plan::HealthCheck};

/// Makes listeners in the node's network namespace.
pub trait NodeListeners: Send + Sync {
    /// Listens on a port of all of the node's addresses.
    ///
    /// # Errors
    /// [`io::Error`], such as that the port is in use.
    fn listen(&self, port: u16) -> io::Result<TcpListener>;
}

/// What there is to tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    checks: Arc<HashMap<ServiceName, HealthCheck>>,
    /// Whether the last change was programmed.
    programmed: bool,
}

impl Health {
    /// Whether that is news.
    pub(crate) fn update(
        &mut self,
        checks: &HashMap<ServiceName, HealthCheck>,
        programmed: bool,
    ) -> bool {
        if *self.checks == *checks && self.programmed == programmed {
            return false;
        }
        self.checks = Arc::new(checks.clone());
        self.programmed = programmed;
        true
    }
}

/// Answers for one Service.
#[derive(Clone)]
struct Answers {
    service: ServiceName,
    health: watch::Receiver<Health>,
}

struct Server {
    port: u16,
    _stop: DropGuard,
}

/// Keeps a server for each Service that has such a port, until cancelled.
pub(crate) async fn health_loop(
    listeners: Arc<dyn NodeListeners>,
    mut health: watch::Receiver<Health>,
    token: CancellationToken,
) {
    let mut servers: HashMap<ServiceName, Server> = HashMap::new();
    loop {
        let checks = Arc::clone(&health.borrow_and_update().checks);
        servers.retain(|service, server| {
            let check = checks.get(service);
            check.is_some_and(|check| check.port == server.port)
        });
        for (service, check) in checks.iter() {
            if servers.contains_key(service) {
                continue;
            }
            let answers = Answers {
                service: service.clone(),
                health: health.clone(),
            };
            match start(&*listeners, check.port, answers, &token) {
                Ok(server) => drop(servers.insert(service.clone(), server)),
                // Tried again at the next change.
                Err(error) => {
                    tracing::warn!(%service, port = check.port, %error, "listening for health checks");
                }
            }
        }
        tokio::select! {
            () = token.cancelled() => return,
            changed = health.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

fn start(
    listeners: &dyn NodeListeners,
    port: u16,
    answers: Answers,
    token: &CancellationToken,
) -> io::Result<Server> {
    let listener = listeners.listen(port)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let stop = token.child_token();
    let routes = Router::new().fallback(answer).with_state(answers);
    let server =
        axum::serve(listener, routes).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::warn!(port, %error, "answering health checks");
        }
    });
    Ok(Server {
        port,
        _stop: stop.drop_guard(),
    })
}

async fn answer(State(answers): State<Answers>) -> Response {
    let health = answers.health.borrow().clone();
    let check = health.checks.get(&answers.service);
    let count = check.map_or(0, |check| check.local_endpoints);
    respond(&answers.service, count, health.programmed).into_response()
}

/// Upstream's body and headers, byte by byte.
fn respond(
    ServiceName { namespace, name }: &ServiceName,
    count: usize,
    healthy: bool,
) -> impl IntoResponse + use<> {
    let status = if count > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", count.to_string()),
    ];
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    (status, headers, body)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Ipv4Addr, SocketAddr, TcpStream},
        sync::Mutex,
        time::Duration,
    };

    use super::*;

    /// Gives each port that is asked for a free one of the loopback.
    #[derive(Default)]
    struct Loopback(Mutex<HashMap<u16, SocketAddr>>);

    impl NodeListeners for Loopback {
        fn listen(&self, port: u16) -> io::Result<TcpListener> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            self.0.lock().unwrap().insert(port, listener.local_addr()?);
            Ok(listener)
        }
    }

    impl Loopback {
        /// The whole answer; none if nobody listens.
        fn ask(&self, port: u16) -> Option<String> {
            let addr = *self.0.lock().unwrap().get(&port)?;
            let mut stream = TcpStream::connect(addr).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let request = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            stream.write_all(request).ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            Some(text).filter(|text| !text.is_empty())
        }

        async fn until(self: &Arc<Self>, port: u16, fits: fn(Option<&str>) -> bool) -> String {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            loop {
                let this = Arc::clone(self);
                let asked = tokio::task::spawn_blocking(move || this.ask(port));
                let answer = asked.await.unwrap();
                if fits(answer.as_deref()) {
                    return answer.unwrap_or_default();
                }
                assert!(tokio::time::Instant::now() < deadline, "{answer:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    fn checks(local_endpoints: usize, port: u16) -> HashMap<ServiceName, HealthCheck> {
        let check = HealthCheck {
            port,
            local_endpoints,
        };
        [(ServiceName::new("dev", "web"), check)].into()
    }

    #[tokio::test]
    async fn load_balancers_learn_how_many_endpoints_there_are() {
        let listeners = Arc::new(Loopback::default());
        let health = watch::Sender::<Health>::default();
        let token = CancellationToken::new();
        let task = health_loop(
            Arc::clone(&listeners) as _,
            health.subscribe(),
            token.clone(),
        );
        let task = tokio::spawn(task);
        let tell = |checks: HashMap<_, _>, programmed| {
            assert!(health.send_if_modified(|health| health.update(&checks, programmed)));
        };
        tell(checks(2, 30_001), true);
        let text = listeners.until(30_001, |answer| answer.is_some()).await;
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        for line in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            assert!(head.lines().any(|have| have == line), "{line} in {head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let expected = serde_json::json!({"service": {"namespace": "dev", "name": "web"},
            "localEndpoints": 2, "serviceProxyHealthy": true});
        assert_eq!(body, expected);

        let refused: fn(Option<&str>) -> bool =
            |answer| answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 503"));
        tell(checks(0, 30_001), true);
        let text = listeners.until(30_001, refused).await;
        assert!(text.contains("\"localEndpoints\": 0"), "{text}");
        tell(checks(1, 30_001), false);
        let text = listeners
            .until(30_001, |answer| {
                answer.is_some_and(|answer| answer.contains("\"serviceProxyHealthy\": false"))
            })
            .await;
        assert!(text.starts_with("HTTP/1.1 503"), "{text}");

        // Another port, then none.
        tell(checks(1, 30_002), true);
        listeners.until(30_002, |answer| answer.is_some()).await;
        listeners.until(30_001, |answer| answer.is_none()).await;
        tell(HashMap::new(), true);
        listeners.until(30_002, |answer| answer.is_none()).await;
        token.cancel();
        task.await.unwrap();
    }
}
