//! Real packets between namespaces.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{Answer, TestNetns};

/// Longer than any exchange on one machine takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a packet is waited for that should not come.
const IMPATIENCE: Duration = Duration::from_millis(400);

/// Connects from one namespace to another and exchanges a word; returns whom the server saw.
#[must_use]
pub fn talk(from: &TestNetns, to: &TestNetns, ip: &str) -> SocketAddr {
    let listener = to.run(|| TcpListener::bind((ip, 0))).unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"hello").unwrap();
            peer
        });
        let mut stream = from
            .run(|| TcpStream::connect_timeout(&address, PATIENCE))
            .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut word = String::new();
        stream.read_to_string(&mut word).unwrap();
        assert_eq!(word, "hello");
        server.join().unwrap()
    })
}

/// Whether a connection from one namespace to another comes about.
#[must_use]
pub fn reaches(from: &TestNetns, to: &TestNetns, ip: &str) -> bool {
    let listener = to.run(|| TcpListener::bind((ip, 0))).unwrap();
    let address = listener.local_addr().unwrap();
    from.run(|| TcpStream::connect_timeout(&address, IMPATIENCE))
        .is_ok()
}

/// A plugin's configuration as it comes after another plugin that answered `previous`.
#[must_use]
pub fn after(previous: &Answer, conf: &Value) -> Value {
    let mut conf = conf.clone();
    conf["prevResult"] = previous.json.clone();
    conf
}
