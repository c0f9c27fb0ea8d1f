//! Sockets and messages: takes questions, asks the zone or another resolver, sends answers.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::DNSClass,
};
use skiff_netns::NodeNetns;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    DnsError,
    forward::{Forwarder, Transport},
    zone::{Answer, Zone},
};

/// Longest answer over UDP unless the client says that it takes more (RFC 1035, RFC 6891).
const PLAIN_UDP: u16 = 512;
/// Most that we send or say we take over UDP: what fits an unfragmented packet everywhere (DNS flag day 2020).
const EDNS_UDP: u16 = 1232;
/// Questions and connections under way at once; more must wait.
const CONCURRENCY: usize = 512;
/// How long a TCP client may be silent.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Bound sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    pub(crate) async fn bind(address: SocketAddr, netns: &NodeNetns) -> Result<Self, DnsError> {
        let make = move || {
            let udp = std::net::UdpSocket::bind(address)?;
            let tcp = std::net::TcpListener::bind(address)?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok::<_, io::Error>((udp, tcp))
        };
        let failed = |source| DnsError::Listen { address, source };
        let made = netns
            .run_blocking(make)
            .await
            .map_err(|source| DnsError::Netns { source })?;
        let (udp, tcp) = made.map_err(failed)?;
        Ok(Self {
            udp: UdpSocket::from_std(udp).map_err(failed)?,
            tcp: TcpListener::from_std(tcp).map_err(failed)?,
        })
    }
}

/// Serves until `token` is cancelled.
pub(crate) async fn serve(
    sockets: Sockets,
    zone: Arc<Zone>,
    forwarder: Arc<Forwarder>,
    token: CancellationToken,
) {
    let resolver = Resolver { zone, forwarder };
    let (udp, tcp) = (Arc::new(sockets.udp), sockets.tcp);
    token
        .run_until_cancelled(async {
            tokio::join!(udp_loop(&udp, &resolver), tcp_loop(&tcp, &resolver));
        })
        .await;
}

#[derive(Clone)]
struct Resolver {
    zone: Arc<Zone>,
    forwarder: Arc<Forwarder>,
}

/// What to do with a question.
enum Reply {
    /// Send this.
    Now(Vec<u8>),
    /// Ask another resolver; if none answers, send this.
    Forward(Vec<u8>),
    /// Not a question.
    Nothing,
}

async fn udp_loop(socket: &Arc<UdpSocket>, resolver: &Resolver) {
    let permits = Arc::new(Semaphore::new(CONCURRENCY));
    let mut forwards = JoinSet::new();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        while forwards.try_join_next().is_some() {}
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An ICMP error for an earlier answer, or no memory: neither ends the service.
                tracing::debug!(%error, "receiving a question");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let question = buffer.get(..length).unwrap_or_default();
        match resolver.reply(question, Transport::Udp) {
            Reply::Nothing => {}
            Reply::Now(answer) => send(socket, &answer, client).await,
            Reply::Forward(failure) => {
                let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                    send(socket, &failure, client).await;
                    continue;
                };
                let (question, resolver) = (question.to_vec(), resolver.clone());
                let socket = Arc::clone(socket);
                forwards.spawn(async move {
                    let answer = resolver.forwarder.ask(&question, Transport::Udp).await;
                    send(&socket, &answer.unwrap_or(failure), client).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "sending an answer");
    }
}

async fn tcp_loop(listener: &TcpListener, resolver: &Resolver) {
    let permits = Arc::new(Semaphore::new(CONCURRENCY));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                let resolver = resolver.clone();
                connections.spawn(async move {
                    if let Err(error) = tcp_connection(stream, &resolver).await {
                        tracing::debug!(%client, %error, "DNS connection");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Answers questions, one after the other, until the client closes or falls silent.
async fn tcp_connection(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    while let Ok(Ok(length)) = timeout(TCP_IDLE, stream.read_u16()).await {
        let mut question = vec![0; usize::from(length)];
        timeout(TCP_IDLE, stream.read_exact(&mut question))
            .await
            .map_err(io::Error::other)??;
        let answer = match resolver.reply(&question, Transport::Tcp) {
            Reply::Nothing => return Ok(()),
            Reply::Now(answer) => answer,
            Reply::Forward(failure) => resolver
                .forwarder
                .ask(&question, Transport::Tcp)
                .await
                .unwrap_or(failure),
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())
            .await?;
    }
    Ok(())
}

impl Resolver {
    fn reply(&self, bytes: &[u8], transport: Transport) -> Reply {
        let request = match Message::from_vec(bytes) {
            Ok(request) => request,
            Err(_malformed) => return malformed(bytes),
        };
        if request.metadata.message_type != MessageType::Query {
            return Reply::Nothing;
        }
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata = Metadata::response_from_request(&request.metadata);
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        if request.edns.is_some() {
            response.set_edns(our_edns());
        }
        let code = match (request.metadata.op_code, request.queries.as_slice()) {
            (OpCode::Query, [query]) if query.query_class() == DNSClass::IN => {
                match self.zone.answer(query.name(), query.query_type()) {
                    Answer::NotOurs => {
                        response.metadata.response_code = ResponseCode::ServFail;
                        return encode(&response).map_or(Reply::Nothing, Reply::Forward);
                    }
                    answer => add(&mut response, answer),
                }
            }
            (OpCode::Query, [_]) => ResponseCode::Refused,
            (OpCode::Query, _) => ResponseCode::FormErr,
            _ => ResponseCode::NotImp,
        };
        response.metadata.response_code = code;
        let limit = match (transport, &request.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, None) => PLAIN_UDP,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP, EDNS_UDP),
        };
        match encode(&response) {
            Some(answer) if answer.len() <= usize::from(limit) => Reply::Now(answer),
            Some(_) => encode(&response.truncate()).map_or(Reply::Nothing, Reply::Now),
            None => Reply::Nothing,
        }
    }
}

fn our_edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(EDNS_UDP);
    edns
}

/// Adds the zone's answer and returns its code.
fn add(response: &mut Message, answer: Answer) -> ResponseCode {
    response.metadata.authoritative = true;
    match answer {
        Answer::Records(records) => {
            response.add_answers(records);
            ResponseCode::NoError
        }
        Answer::NoData(soa) => {
            response.add_authority(soa);
            ResponseCode::NoError
        }
        Answer::NoName(soa) => {
            response.add_authority(soa);
            ResponseCode::NXDomain
        }
        Answer::NotOurs => ResponseCode::ServFail,
    }
}

/// FORMERR for whatever has a header and is not itself an answer.
fn malformed(bytes: &[u8]) -> Reply {
    match *bytes {
        [id_high, id_low, flags, ..] if bytes.len() >= 12 && flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([id_high, id_low]);
            let response = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            encode(&response).map_or(Reply::Nothing, Reply::Now)
        }
        _ => Reply::Nothing,
    }
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    match message.to_vec() {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::warn!(%error, "encoding an answer");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };
    use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

    use super::*;
    use crate::zone::{parse_domain, tests::FakeDirectory};

    /// A headless Service with `endpoints` addresses.
    fn resolver(endpoints: u8, upstreams: Vec<SocketAddr>) -> Resolver {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "dev", "name": "web"}, "spec": {"clusterIP": "None"},
        }))
        .unwrap();
        let endpoints: Vec<_> = (0..endpoints)
            .map(|n| serde_json::json!({"addresses": [format!("10.244.0.{n}")]}))
            .collect();
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "dev", "name": "web-1",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [],
        }))
        .unwrap();
        let directory = FakeDirectory {
            services: vec![Arc::new(service)],
            slices: vec![Arc::new(slice)],
        };
        Resolver {
            zone: Arc::new(Zone::new(
                parse_domain("cluster.local").unwrap(),
                Box::new(directory),
            )),
            forwarder: Arc::new(Forwarder::new(upstreams, NodeNetns::machine())),
        }
    }

    fn question(name: &str) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message
    }

    fn now(reply: Reply) -> Message {
        match reply {
            Reply::Now(bytes) | Reply::Forward(bytes) => Message::from_vec(&bytes).unwrap(),
            Reply::Nothing => panic!("no reply"),
        }
    }

    #[test]
    fn an_answer_that_udp_cannot_carry_is_truncated_and_tcp_has_it_whole() {
        let resolver = resolver(100, Vec::new());
        let bytes = question("web.dev.svc.cluster.local.").to_vec().unwrap();
        let over_udp = now(resolver.reply(&bytes, Transport::Udp));
        assert!(over_udp.metadata.truncation);
        let over_tcp = now(resolver.reply(&bytes, Transport::Tcp));
        assert_eq!(
            (over_tcp.answers.len(), over_tcp.metadata.truncation),
            (100, false)
        );
    }

    #[test]
    fn what_is_no_question_gets_a_code_or_nothing() {
        let resolver = resolver(1, Vec::new());
        let mut two = question("web.dev.svc.cluster.local.");
        two.add_query(two.queries[0].clone());
        let code = |bytes: &[u8]| {
            now(resolver.reply(bytes, Transport::Udp))
                .metadata
                .response_code
        };
        assert_eq!(code(&two.to_vec().unwrap()), ResponseCode::FormErr);
        assert_eq!(
            code(&[0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0]),
            ResponseCode::FormErr
        );
        let answer = question("web.dev.svc.cluster.local.")
            .into_response()
            .to_vec()
            .unwrap();
        for ignored in [answer.as_slice(), b"", b"short"] {
            assert!(matches!(
                resolver.reply(ignored, Transport::Udp),
                Reply::Nothing
            ));
        }
    }

    #[tokio::test]
    async fn other_names_go_to_the_first_resolver_that_answers() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let refused = silent.local_addr().unwrap();
        drop(silent);
        let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let resolver = resolver(1, vec![refused, upstream.local_addr().unwrap()]);
        let asked = question("example.org.");
        let bytes = asked.to_vec().unwrap();
        let failure = now(resolver.reply(&bytes, Transport::Udp));
        assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
        let serving = async {
            let mut buffer = [0; 512];
            let (length, client) = upstream.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], bytes[..]);
            let reply = Message::from_vec(&buffer[..length])
                .unwrap()
                .into_response();
            upstream
                .send_to(&reply.to_vec().unwrap(), client)
                .await
                .unwrap();
        };
        let (answer, ()) = tokio::join!(resolver.forwarder.ask(&bytes, Transport::Udp), serving);
        assert_eq!(
            Message::from_vec(&answer.unwrap()).unwrap().metadata.id,
            asked.metadata.id
        );
    }
}
