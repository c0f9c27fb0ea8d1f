//! Delivering a log's text.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;

use super::inotify::DirWatch;
use super::options::LogOptions;
use super::{Line, Stream, parse_line};

/// One container line, or a part of one, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Where it came from.
    pub(crate) stream: Stream,
    /// The text, with its line end if it has one.
    pub(crate) bytes: Vec<u8>,
}

/// Tells whether the container still writes. Follows ask it when they have read everything.
pub(crate) trait Liveness: Send {
    /// Returns once something about the container may have changed.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
    /// Whether it still runs.
    fn is_running(&mut self) -> impl Future<Output = bool> + Send;
}

/// Reads a log from where the options say.
pub(crate) struct LogReader {
    path: PathBuf,
    options: LogOptions,
    file: BufReader<File>,
    inode: u64,
    /// A line that has no end yet.
    partial: Vec<u8>,
    /// The next text begins a line of the container.
    at_line_start: bool,
    sent: u64,
}

impl LogReader {
    /// Opens the log at the first wanted line.
    pub(crate) async fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let start = match options.tail {
            Some(lines) => {
                let path = path.to_owned();
                let offset = move || super::tail_offset(&path, lines);
                tokio::task::spawn_blocking(offset)
                    .await
                    .map_err(io::Error::other)??
            }
            None => 0,
        };
        let (mut file, inode) = open_file(path).await?;
        file.seek(io::SeekFrom::Start(start)).await?;
        Ok(Self {
            path: path.to_owned(),
            options,
            file: BufReader::new(file),
            inode,
            partial: Vec::new(),
            at_line_start: true,
            sent: 0,
        })
    }

    /// The next text; `None` at the end of what there is now or of what is wanted.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Chunk>> {
        while !self.is_full() {
            if self.file.read_until(b'\n', &mut self.partial).await? == 0 {
                return Ok(None);
            }
            if !self.partial.ends_with(b"\n") {
                // The writer is in the middle of it.
                return Ok(None);
            }
            let raw = std::mem::take(&mut self.partial);
            let Some(line) = parse_line(&raw) else {
                continue;
            };
            if let Some(chunk) = self.chunk(&line) {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    /// Everything that was wanted was sent.
    pub(crate) fn is_full(&self) -> bool {
        self.options.limit.is_some_and(|limit| self.sent >= limit)
    }

    fn chunk(&mut self, line: &Line<'_>) -> Option<Chunk> {
        if self
            .options
            .stream
            .is_some_and(|stream| stream != line.stream)
        {
            return None;
        }
        if let (Some(since), Some(time)) = (self.options.since, line.time())
            && time < since
        {
            return None;
        }
        let mut bytes = Vec::with_capacity(line.text.len() + 40);
        if self.options.timestamps && self.at_line_start {
            bytes.extend_from_slice(line.stamp.as_bytes());
            bytes.push(b' ');
        }
        bytes.extend_from_slice(line.text);
        if line.ends {
            bytes.push(b'\n');
        }
        self.at_line_start = line.ends;
        if let Some(limit) = self.options.limit {
            let room = usize::try_from(limit - self.sent).unwrap_or(usize::MAX);
            bytes.truncate(room);
        }
        self.sent += u64::try_from(bytes.len()).unwrap_or(0);
        Some(Chunk {
            stream: line.stream,
            bytes,
        })
    }

    /// Goes to the new file if the log was rotated, to the beginning if it was cut; whether it did.
    async fn reopen(&mut self) -> io::Result<bool> {
        let position = self.file.stream_position().await?;
        match tokio::fs::metadata(&self.path).await {
            Ok(meta) if meta.ino() == self.inode => {
                if meta.len() >= position {
                    return Ok(false);
                }
                self.file.seek(io::SeekFrom::Start(0)).await?;
            }
            Ok(_) => {
                let (file, inode) = open_file(&self.path).await?;
                self.file = BufReader::new(file);
                self.inode = inode;
            }
            // Between the rename and the new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        self.partial.clear();
        Ok(true)
    }

    /// Sends the log, going on at its end as long as the container runs if that is wanted. Returns early if
    /// nobody listens.
    pub(crate) async fn run(
        mut self,
        mut liveness: impl Liveness,
        send: mpsc::Sender<Chunk>,
    ) -> io::Result<()> {
        let directory = self.path.parent().map(Path::to_owned).unwrap_or_default();
        // Before the first read: what comes after it is told.
        let mut watch = if self.options.follow {
            Some(DirWatch::new(&directory)?)
        } else {
            None
        };
        let mut last_round = false;
        loop {
            while let Some(chunk) = self.next().await? {
                if send.send(chunk).await.is_err() {
                    return Ok(());
                }
            }
            if self.is_full() {
                return Ok(());
            }
            let Some(watch) = watch.as_mut() else {
                return Ok(());
            };
            if self.reopen().await? {
                continue;
            }
            if last_round {
                return Ok(());
            }
            if !liveness.is_running().await {
                // Once more: it may have written between the read and its end.
                last_round = true;
                continue;
            }
            tokio::select! {
                changed = watch.changed() => changed?,
                () = liveness.changed() => {}
                () = send.closed() => return Ok(()),
            }
        }
    }
}

async fn open_file(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path).await?;
    let inode = file.metadata().await?.ino();
    Ok((file, inode))
}
