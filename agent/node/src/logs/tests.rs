use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, mpsc};

use super::options::LogOptions;
use super::stream::{Liveness, LogReader};
use super::*;

fn line(second: u32, stream: &str, tag: &str, text: &str) -> String {
    format!("2026-01-02T03:04:{second:02}.000000000Z {stream} {tag} {text}\n")
}

fn options(query: &str) -> LogOptions {
    let pairs: Vec<(String, String)> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    LogOptions::parse(&pairs, "2026-01-02T03:04:10Z".parse().unwrap()).unwrap()
}

/// A container whose end the test decides.
#[derive(Clone, Default)]
struct Container {
    ended: Arc<AtomicBool>,
    changed: Arc<Notify>,
}

impl Container {
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }
}

impl Liveness for Container {
    async fn changed(&mut self) {
        self.changed.notified().await;
    }

    async fn is_running(&mut self) -> bool {
        !self.ended.load(Ordering::SeqCst)
    }
}

async fn read(path: &Path, query: &str) -> String {
    let reader = LogReader::open(path, options(query)).await.unwrap();
    let (sender, mut chunks) = mpsc::channel(100_000);
    reader.run(Container::default(), sender).await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        text.extend(chunk.bytes);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn options_choose_the_part() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("0.log");
    let content = [
        line(1, "stdout", "F", "one"),
        line(2, "stderr", "F", "two"),
        line(3, "stdout", "P", "thr"),
        line(3, "stdout", "F", "ee"),
        "not a log line\n".to_owned(),
        line(9, "stdout", "F", ""),
    ];
    fs::write(&path, content.concat()).unwrap();
    assert_eq!(read(&path, "").await, "one\ntwo\nthree\n\n");
    assert_eq!(read(&path, "sinceSeconds=7").await, "three\n\n");
    assert_eq!(read(&path, "sinceTime=2026-01-02T03:04:09Z").await, "\n");
    assert_eq!(read(&path, "limitBytes=6").await, "one\ntw");
    assert_eq!(read(&path, "stream=Stderr").await, "two\n");
    assert_eq!(
        read(&path, "timestamps=true&limitBytes=35").await,
        "2026-01-02T03:04:01.000000000Z one\n"
    );
    assert_eq!(read(&path, "tailLines=0").await, "");
    assert_eq!(read(&path, "tailLines=1").await, "\n");
    assert_eq!(read(&path, "tailLines=100").await, "one\ntwo\nthree\n\n");
}

#[tokio::test]
async fn tail_counts_lines_not_their_parts_and_reads_long_logs_backwards() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("0.log");
    let mut content = String::new();
    for index in 0..5000 {
        content.push_str(&line(
            1,
            "stdout",
            "P",
            &format!("{index}-{}", "x".repeat(40)),
        ));
        content.push_str(&line(1, "stdout", "F", "end"));
    }
    fs::write(&path, content).unwrap();
    let text = read(&path, "tailLines=2").await;
    let starts: Vec<&str> = text.lines().map(|line| &line[..5]).collect();
    assert_eq!(starts, ["4998-", "4999-"]);
    assert_eq!(read(&path, "tailLines=3000").await.lines().count(), 3000);
    assert_eq!(tail_text(&path, 1, 10).unwrap(), "xxxxxxend\n");
}

#[test]
fn bad_parameters_are_named() {
    let parse = |name: &str, value: &str| {
        LogOptions::parse(
            &[(name.to_owned(), value.to_owned())],
            jiff::Timestamp::UNIX_EPOCH,
        )
    };
    for (name, value) in [
        ("tailLines", "-1"),
        ("sinceTime", "yesterday"),
        ("follow", "maybe"),
    ] {
        let message = parse(name, value).unwrap_err().to_string();
        assert_eq!(
            message,
            format!("invalid value {value:?} for parameter {name}")
        );
    }
}

#[tokio::test]
async fn follow_goes_through_rotation_to_the_container_s_end() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("0.log");
    fs::write(&path, line(1, "stdout", "F", "one")).unwrap();
    let container = Container::default();
    let reader = LogReader::open(&path, options("follow=true"))
        .await
        .unwrap();
    let (sender, mut receiver) = mpsc::channel::<stream::Chunk>(1);
    let task = tokio::spawn(reader.run(container.clone(), sender));
    let mut next = async || {
        let chunk = receiver.recv().await;
        chunk
            .map(|chunk| String::from_utf8(chunk.bytes).unwrap())
            .unwrap_or_default()
    };
    assert_eq!(next().await, "one\n");

    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let two = line(2, "stdout", "F", "two");
    let (head, tail) = two.split_at(20);
    file.write_all(head.as_bytes()).unwrap();
    file.write_all(tail.as_bytes()).unwrap();
    assert_eq!(next().await, "two\n");

    fs::rename(&path, root.path().join("0.log.1")).unwrap();
    fs::write(&path, line(3, "stdout", "F", "three")).unwrap();
    assert_eq!(next().await, "three\n");

    // Written before the end is noticed, and still delivered.
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(line(4, "stdout", "F", "four").as_bytes())
        .unwrap();
    container.end();
    assert_eq!(next().await, "four\n");
    assert_eq!(next().await, "");
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn follow_ends_when_nobody_listens() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("0.log");
    fs::write(&path, line(1, "stdout", "F", "one")).unwrap();
    let reader = LogReader::open(&path, options("follow=true"))
        .await
        .unwrap();
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    reader.run(Container::default(), sender).await.unwrap();
}
