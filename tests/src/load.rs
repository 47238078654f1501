//! Real requests through the gateway: `demo-load`, as a process of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_demo::report::{Line, Progress, Summary};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::{program, until};

/// Requests at a rate, until it is finished.
#[derive(Debug)]
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    reader: Option<JoinHandle<Option<Summary>>>,
    last: Arc<Mutex<Option<Progress>>>,
}

impl Load {
    /// Begins.
    ///
    /// # Errors
    /// `demo-load` cannot be started.
    pub fn start(gateway: &str, host: &str, rate: u32) -> Result<Self> {
        let mut child = Command::new(program("demo-load")?)
            .args(["--url", gateway, "--host", host, "--rate", &rate.to_string()])
            .args(["--duration", "1h", "--until-stdin-closes", "--progress", "-o", "json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("demo-load cannot be started")?;
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let last = Arc::new(Mutex::new(None));
        let seen = last.clone();
        let reader = std::thread::spawn(move || {
            let mut summary = None;
            for line in lines.map_while(Result::ok) {
                match serde_json::from_str::<Line>(&line) {
                    Ok(Line::Progress(progress)) => {
                        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
                    }
                    Ok(Line::Summary(end)) => summary = Some(end),
                    Err(_) => {}
                }
            }
            summary
        });
        Ok(Self { child, stdin, reader: Some(reader), last })
    }

    /// The last second, and all so far.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The share of answers of the last second that came from this version.
    #[must_use]
    pub fn share(&self, version: &str) -> Option<f64> {
        self.progress()?.interval.share(version)
    }

    /// Ends, and counts.
    ///
    /// # Errors
    /// There is no summary.
    pub fn finish(mut self) -> Result<Summary> {
        drop(self.stdin.take());
        ensure!(self.child.wait()?.success(), "demo-load failed");
        let reader = self.reader.take().context("finished twice")?;
        reader.join().ok().flatten().context("demo-load gave no summary")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the gateway has learnt the way to some pod: that a route is accepted says nothing of endpoints.
///
/// # Errors
/// It has not within half a minute.
pub async fn answered(gateway: &str, host: &str) -> Result<()> {
    until(Duration::from_secs(30), "the gateway reaches a pod", || async {
        Ok(reaches(gateway, host).await?.then_some(()))
    })
    .await
}

/// Waits until the gateway has no pod for this host any more.
///
/// # Errors
/// It still has one after 30 s.
pub async fn unanswered(gateway: &str, host: &str) -> Result<()> {
    until(Duration::from_secs(30), "the gateway reaches no pod", || async {
        Ok((!reaches(gateway, host).await?).then_some(()))
    })
    .await
}

async fn reaches(gateway: &str, host: &str) -> Result<bool> {
    let address = gateway.strip_prefix("http://").context("no http address")?;
    let request = format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n");
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let named = format!("\n{}:", davylamp_demo::VERSION_HEADER);
    Ok(answer.to_ascii_lowercase().contains(&named))
}

/// Answers of a version by status.
#[must_use]
pub fn answers(summary: &Summary, version: &str) -> BTreeMap<String, u64> {
    summary.counts.by_version.get(version).cloned().unwrap_or_default()
}
