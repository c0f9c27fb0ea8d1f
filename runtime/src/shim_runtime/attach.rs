//! Clients of running containers. Input goes to the container directly; output comes through the shim, which writes it to
//! the log too.

use std::{
    io::IsTerminal as _,
    os::fd::{AsFd, OwnedFd},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::unix::pipe,
    sync::mpsc,
};

use super::{
    ShimRuntime,
    exec::{Terminal, failed, io_failed},
};
use crate::{
    AttachConfig, AttachSession, ContainerRef, RuntimeError, client,
    protocol::{AttachRequest, Operation, Reply},
};

impl ShimRuntime {
    pub(super) async fn connect_client(
        &self,
        id: &ContainerRef,
        config: AttachConfig,
    ) -> Result<AttachSession, RuntimeError> {
        let client = self.of_running(id)?.client()?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for asked in [config.stdout, config.stderr] {
            ours.push(if asked {
                let (reader, writer) = client::pipe().map_err(io_failed)?;
                theirs.push(writer);
                Some(pipe::Receiver::from_owned_fd(reader).map_err(io_failed)?)
            } else {
                None
            });
        }
        let request = AttachRequest {
            container_id: id.container_id.clone(),
            stdin: config.stdin,
            stdout: config.stdout,
            stderr: config.stderr,
        };
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let (reply, mut received) = client
            .call("attaching", Operation::Attach(request), &fds)
            .await?;
        if reply != Reply::Attached {
            return Err(failed("an answer to another question".to_owned()));
        }
        let stdin = received.pop().map(input).transpose().map_err(io_failed)?;
        let (resize, mut sizes) = mpsc::channel(4);
        let container_id = id.container_id.clone();
        self.spawn(async move {
            while let Some((columns, rows)) = sizes.recv().await {
                let resize = Operation::Resize {
                    container_id: container_id.clone(),
                    columns,
                    rows,
                };
                if let Err(error) = client.call("resizing a terminal", resize, &[]).await {
                    tracing::debug!(%error, "resizing a terminal");
                }
            }
        });
        let boxed = |pipe| Box::new(pipe) as Box<dyn AsyncRead + Send + Unpin>;
        let mut ours = ours.into_iter().map(|pipe| pipe.map(boxed));
        Ok(AttachSession {
            stdin,
            stdout: ours.next().flatten(),
            stderr: ours.next().flatten(),
            resize,
        })
    }
}

/// A pipe to the container, or its terminal.
fn input(fd: OwnedFd) -> std::io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
    Ok(if fd.is_terminal() {
        Box::new(Terminal::of(fd)?)
    } else {
        Box::new(pipe::Sender::from_owned_fd(fd)?)
    })
}
