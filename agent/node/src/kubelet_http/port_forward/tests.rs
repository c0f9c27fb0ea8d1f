use super::super::tests::{Client as WebSocketClient, node_with_pod};
use super::spdy::tests::{Client, data};
use super::*;

/// Collects a stream's bytes until its end, whatever else comes.
async fn read_streams(client: &mut WebSocketClient, streams: &[u32]) -> HashMap<u32, Vec<u8>> {
    let mut decoder = Decoder::new();
    let mut read: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut open: Vec<u32> = streams.to_vec();
    while !open.is_empty() {
        decoder.push(&client.next().await.1);
        while let Some(frame) = decoder.next().unwrap() {
            if let Frame::Data { stream, bytes, end } = frame {
                read.entry(stream).or_default().extend_from_slice(&bytes);
                open.retain(|other| !(end && *other == stream));
            }
        }
    }
    read
}

fn headers<'a>(kind: &'a str, port: &'a str, id: &'a str) -> [(&'a str, &'a str); 3] {
    [("streamtype", kind), ("port", port), ("requestid", id)]
}

/// Upper-cases what it gets, then ends.
async fn shouting_server() -> u16 {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut said = String::new();
            connection.read_to_string(&mut said).await.unwrap();
            let shouted = said.to_uppercase();
            connection.write_all(shouted.as_bytes()).await.unwrap();
        }
    });
    port
}

async fn connect_to_node() -> (crate::testing::TestNode, WebSocketClient) {
    let node = node_with_pod(true).await;
    let path = "/portForward/default/web";
    let (client, head) = WebSocketClient::connect(&node, path, PROTOCOL).await;
    assert!(head.contains(PROTOCOL), "{head}");
    (node, client)
}

#[tokio::test]
async fn connections_are_carried_both_ways_beside_each_other() {
    let port = shouting_server().await.to_string();
    let (_node, mut client) = connect_to_node().await;
    let mut spdy = Client::new();
    for (id, error, stream) in [("0", 1, 3), ("1", 5, 7)] {
        client
            .send(&spdy.open(error, &headers("error", &port, id)))
            .await;
        client
            .send(&spdy.open(stream, &headers("data", &port, id)))
            .await;
    }
    client.send(&data(3, b"one ", false)).await;
    client.send(&data(7, b"two", true)).await;
    client.send(&data(3, b"more", true)).await;
    let read = read_streams(&mut client, &[1, 3, 5, 7]).await;
    assert_eq!((&*read[&3], &*read[&7]), (&b"ONE MORE"[..], &b"TWO"[..]));
    assert_eq!((&*read[&1], &*read[&5]), (&b""[..], &b""[..]));
}

/// Says something once, and never ends by itself; tells when its client is gone.
async fn holding_server() -> (u16, tokio::sync::oneshot::Receiver<()>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let (gone, left) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.write_all(b"hello").await.unwrap();
        // An end of input is not the end of a connection: only writing tells.
        connection.read_to_end(&mut Vec::new()).await.ok();
        while connection.write_all(b".").await.is_ok() {
            tokio::task::yield_now().await;
        }
        gone.send(()).unwrap();
    });
    (port, left)
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_its_connection() {
    let (port, left) = holding_server().await;
    let port = port.to_string();
    let (_node, mut client) = connect_to_node().await;
    let mut spdy = Client::new();
    for (stream, kind) in [(1, "error"), (3, "data")] {
        client
            .send(&spdy.open(stream, &headers(kind, &port, "0")))
            .await;
    }
    client.send(&data(3, b"", true)).await;
    client
        .send(b"\x80\x03\x00\x03\0\0\0\x08\0\0\0\x03\0\0\0\x05")
        .await;
    let read = read_streams(&mut client, &[1]).await;
    assert_eq!(&*read[&1], b"");
    left.await.unwrap();
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_said_so() {
    let (_node, mut client) = connect_to_node().await;
    let mut spdy = Client::new();
    client.send(&spdy.open(1, &headers("data", "1", "0"))).await;
    client
        .send(&spdy.open(3, &headers("error", "1", "0")))
        .await;
    let read = read_streams(&mut client, &[1, 3]).await;
    let said = String::from_utf8_lossy(&read[&3]);
    assert!(
        said.starts_with("error forwarding port 1 to pod web, uid uid-web: "),
        "{said}"
    );
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused() {
    let (_node, mut client) = connect_to_node().await;
    let mut spdy = Client::new();
    for (number, headers) in [
        headers("data", "0", "0"),
        headers("data", "70000", "0"),
        headers("other", "1", "0"),
        [("streamtype", "data"), ("port", "1"), ("x", "0")],
    ]
    .iter()
    .enumerate()
    {
        let stream = u32::try_from(number).unwrap() * 2 + 1;
        client.send(&spdy.open(stream, headers)).await;
        let reset = client.next().await.1;
        assert_eq!(&reset[..4], b"\x80\x03\x00\x03", "{headers:?}");
    }
}
