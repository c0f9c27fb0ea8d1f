//! The API over plain HTTP: `kubectl proxy` carries it, so that starting kubectl is not part of what is measured.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{Instance, free_port};

/// A running `kubectl proxy`.
pub(super) struct Proxy {
    child: Child,
    port: u16,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Proxy {
    pub(super) fn start(instance: &Instance) -> Result<Self> {
        let port = free_port(0)?;
        let mut kubectl = instance.kubectl();
        kubectl.arg("proxy").arg(format!("--port={port}"));
        let child = kubectl.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let proxy = Self { child, port };
        super::wait_until("kubectl proxy", || {
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })?;
        Ok(proxy)
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut reader = BufReader::new(stream);
        let mut status = String::new();
        reader.read_line(&mut status)?;
        let mut header = String::from("-");
        while !header.trim().is_empty() {
            header.clear();
            reader.read_line(&mut header)?;
        }
        let code: u16 = status
            .split(' ')
            .nth(1)
            .context("no status line")?
            .parse()?;
        if !(200..300).contains(&code) {
            let mut text = String::new();
            reader.read_to_string(&mut text)?;
            bail!("{method} {path}: {code} {text}");
        }
        Ok(reader)
    }

    /// One request, one object.
    pub(super) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut text = String::new();
        self.send(method, path, body)?.read_to_string(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("{method} {path}"))
    }

    /// Reads watch events until `done` says so.
    pub(super) fn watch(&self, path: &str, mut done: impl FnMut(&Value) -> bool) -> Result<()> {
        let mut reader = self.send("GET", path, None)?;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(
                reader.read_line(&mut line)? > 0,
                "the watch of {path} ended"
            );
            let event: Value = serde_json::from_str(&line)?;
            if done(&event) {
                return Ok(());
            }
        }
    }
}
