//! Both programs as processes on loopback: the load generator's account against the application's own, and how
//! the application ends.

#![expect(clippy::unwrap_used, reason = "helpers of tests are not in the tests' own functions")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use davylamp_demo::report::{Line, Progress, Summary};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn the_load_counts_what_the_application_counts() {
    let app = App::start(&["--version", "v7", "--seed", "7", "--error-rate", "20%", "--latency", "2ms"]);
    let summary = load(&app.url("/shop?item=1"), &["--rate", "500", "--max-requests", "1000"]);

    let answers = &summary.counts.by_version["v7"];
    assert_eq!(summary.counts.by_version.len(), 1, "{summary:?}");
    assert_eq!(summary.counts.failed, 0, "{summary:?}");
    assert_eq!(summary.counts.sent, summary.counts.answered, "{summary:?}");
    assert_eq!(summary.counts.sent + summary.counts.late, 1000, "{summary:?}");
    assert_eq!(app.metric("http_requests_total{code=\"200\"}"), Some(answers["200"]));
    assert_eq!(app.metric("http_requests_total{code=\"500\"}"), Some(answers["500"]));
    assert_eq!(app.metric("http_request_duration_seconds_count"), Some(summary.counts.sent));

    // The seed has decided; the band is for whoever changes it: six standard deviations to each side.
    #[expect(clippy::cast_precision_loss, reason = "counts are at most 1000")]
    let (errors, sent) = (answers["500"] as f64, summary.counts.sent as f64);
    let deviation = (sent * 0.2 * 0.8).sqrt();
    assert!((errors - sent * 0.2).abs() < 6.0 * deviation, "{summary:?}");
}

#[test]
fn a_seed_repeats_a_run() {
    let outcome = || {
        let app = App::start(&["--seed", "7", "--error-rate", "0.2", "--latency", "0s"]);
        let codes: String =
            (0..100).map(|_| if get(app.address, "/").status == 500 { 'x' } else { '.' }).collect();
        (codes, app.metric("signups_total"))
    };
    let (codes, signups) = outcome();
    assert!(codes.contains('x') && codes.contains('.'), "{codes}");
    assert_eq!(outcome(), (codes, signups));
}

#[test]
fn only_requests_of_users_are_counted_and_errors_from_the_first_on() {
    let app = App::start(&["--latency", "0s"]);
    for path in ["/metrics", "/ready", "/healthz"] {
        assert_eq!(get(app.address, path).status, 200, "{path}");
    }
    assert_eq!(app.metric("http_requests_total{code=\"200\"}"), None);

    let answer = get(app.address, "/");
    assert_eq!((answer.status, answer.header("x-demo")), (200, Some("v1")));
    assert_eq!(app.metric("http_requests_total{code=\"200\"}"), Some(1));
    assert_eq!(app.metric("http_requests_total{code=\"500\"}"), None);
}

#[test]
fn it_is_configured_by_its_environment() {
    let app = App::start_with(&[("VERSION", "v2"), ("ERROR_RATE", "100%"), ("STARTUP_DELAY", "1h")], &[]);
    let answer = get(app.address, "/");
    assert_eq!((answer.status, answer.header("x-demo")), (500, Some("v2")));
    assert_eq!(get(app.address, "/ready").status, 503);
    assert_eq!(get(app.address, "/healthz").status, 200);
}

#[test]
fn errors_are_switched_on_while_it_runs() {
    let app = App::start(&["--latency", "0s"]);
    assert_eq!(get(app.address, "/").status, 200);
    let post = |rate: &str| {
        let length = rate.len();
        let head = format!(
            "POST /admin/error-rate HTTP/1.1\r\nhost: demo\r\nconnection: close\r\ncontent-length: {length}"
        );
        let mut connection = TcpStream::connect(app.address).unwrap();
        write!(connection, "{head}\r\n\r\n{rate}").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(post("all").starts_with("HTTP/1.1 400 "));
    assert_eq!(get(app.address, "/").status, 200);
    assert!(post("100%").starts_with("HTTP/1.1 200 "));
    assert_eq!(get(app.address, "/").status, 500);
    assert_eq!(app.metric("http_requests_total{code=\"200\"}"), Some(2));
}

#[test]
fn a_leak_is_seen_in_the_memory_of_the_process() {
    let app = App::start(&["--latency", "0s", "--leak", "1024"]);
    let memory = || app.metric("process_resident_memory_bytes").unwrap();
    let before = memory();
    for _ in 0..32 {
        get(app.address, "/");
    }
    let grown = memory() - before;
    assert!((32 << 20..48 << 20).contains(&grown), "{grown} bytes");
}

#[test]
fn a_draining_application_is_unready_and_serves_and_parts() {
    let app = App::start(&["--drain", "1h", "--latency", "0s"]);
    assert_eq!(get(app.address, "/ready").status, 200);
    app.terminate();
    until("readiness fails", || get(app.address, "/ready").status == 503);

    let mut connection = TcpStream::connect(app.address).unwrap();
    let answer = request(&mut connection, "/", "keep-alive");
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(connection.read(&mut [0]).unwrap(), 0, "the connection is open");
}

#[test]
fn requests_in_flight_are_answered_before_the_end() {
    let mut app = App::start(&["--drain", "100ms", "--latency", "2s", "--latency-spread", "0"]);
    let address = app.address;
    let requests: Vec<_> = (0..4).map(|_| thread::spawn(move || get(address, "/").status)).collect();
    until("requests are in flight", || app.metric("http_requests_in_flight") == Some(4));

    app.terminate();
    for request in requests {
        assert_eq!(request.join().unwrap(), 200);
    }
    assert!(app.process.wait().success());
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let drain = Duration::from_millis(300);
    let mut app = App::start(&["--drain", "300ms", "--latency", "0s"]);
    let mut idle = TcpStream::connect(app.address).unwrap();
    assert_eq!(request(&mut idle, "/", "keep-alive").status, 200);
    let unused = TcpStream::connect(app.address).unwrap();

    let begin = now();
    app.terminate();
    assert!(app.process.wait().success());
    // It ends at once after the drain; requests in flight would have been waited for ten seconds long.
    let took = now() - begin;
    assert!(took >= drain && took < drain + Duration::from_secs(5), "{took:?}");
    drop((idle, unused));
}

#[test]
fn an_answer_without_a_version_is_a_failure() {
    let app = App::start(&[]);
    let summary = load(&app.url("/healthz"), &["--max-requests", "10"]);
    assert_eq!((summary.counts.answered, summary.counts.failed), (0, summary.counts.sent));
    assert_eq!(summary.failures.len(), 1, "{summary:?}");
    assert_eq!(summary.failures[0].reason, "answer without x-demo: 200 OK");
    assert_eq!(summary.failures[0].count, summary.counts.sent);
    assert_eq!(summary.latency_ms, None);
}

#[test]
fn a_refused_connection_is_a_failure() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let summary = load(&format!("http://{unused}/"), &["--max-requests", "5"]);
    assert_eq!((summary.counts.sent + summary.counts.late, summary.counts.failed), (5, summary.counts.sent));
    assert!(summary.failures[0].reason.starts_with("connect: Connection refused"), "{summary:?}");
}

#[test]
fn a_slow_answer_is_a_failure() {
    let app = App::start(&["--latency", "50s", "--latency-spread", "0"]);
    let summary = load(&app.url("/"), &["--max-requests", "3", "--timeout", "50ms"]);
    assert_eq!((summary.counts.answered, summary.counts.failed), (0, summary.counts.sent));
    assert_eq!(summary.failures[0].reason, "no answer within 50ms");
}

#[test]
fn a_kept_connection_that_ends_before_an_answer_is_a_failure() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", server.local_addr().unwrap());
    // It answers the first request, takes the second and leaves without a word.
    let server = thread::spawn(move || {
        let mut connection = server.accept().unwrap().0;
        read_head(&mut connection);
        connection.write_all(b"HTTP/1.1 200 OK\r\nx-demo: v1\r\ncontent-length: 0\r\n\r\n").unwrap();
        read_head(&mut connection);
    });
    let summary = load(&url, &["--max-requests", "2", "--connections", "1", "--rate", "1"]);
    server.join().unwrap();
    assert_eq!((summary.counts.answered, summary.counts.failed), (1, 1), "{summary:?}");
    assert!(summary.failures[0].reason.starts_with("no answer on a kept connection: "), "{summary:?}");
}

#[test]
fn a_kept_connection_that_ended_in_time_is_opened_anew() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", server.local_addr().unwrap());
    let server = thread::spawn(move || {
        for _ in 0..2 {
            let mut connection = server.accept().unwrap().0;
            read_head(&mut connection);
            let answer = b"HTTP/1.1 200 OK\r\nx-demo: v1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            connection.write_all(answer).unwrap();
        }
    });
    let summary = load(&url, &["--max-requests", "2", "--connections", "1", "--rate", "1"]);
    server.join().unwrap();
    assert_eq!((summary.counts.answered, summary.counts.failed), (2, 0), "{summary:?}");
}

#[test]
fn the_load_ends_with_its_standard_input() {
    let app = App::start(&[]);
    let mut load = Load::start(&app.url("/"), &["--duration", "1h", "--until-stdin-closes", "--progress"]);
    let progress = load.progress();
    assert!(progress.interval.answered > 0, "{progress:?}");
    assert_eq!(progress.interval, progress.total);
    drop(load.input.take());
    let summary = load.summary();
    assert_eq!(summary.counts.by_version["v1"]["200"], summary.counts.sent, "{summary:?}");
}

#[test]
fn the_load_ends_by_a_signal_and_waits_for_answers_under_way() {
    let app = App::start(&["--latency", "100ms", "--latency-spread", "0"]);
    let mut load = Load::start(&app.url("/"), &["--duration", "1h", "--progress"]);
    let progress = load.progress();
    load.process.signal(Signal::TERM);
    let summary = load.summary();
    assert!(summary.counts.answered >= progress.total.sent, "{progress:?} {summary:?}");
    assert_eq!((summary.counts.failed, summary.counts.answered), (0, summary.counts.sent));
}

#[test]
fn the_load_refuses_what_is_elsewhere() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo-load"))
        .args(["--url", "http://192.0.2.1/", "--max-requests", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("192.0.2.1 is neither loopback nor private"), "{message}");
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        self.0.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct App {
    process: Process,
    address: SocketAddr,
    /// Closed, it would fail the application's later lines.
    _output: BufReader<ChildStdout>,
}

impl App {
    fn start(flags: &[&str]) -> Self {
        Self::start_with(&[], flags)
    }

    fn start_with(environment: &[(&str, &str)], flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_demo-app"))
            .env_clear()
            .envs([("ADDRESS", "127.0.0.1"), ("PORT", "0")])
            .envs(environment.iter().copied())
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let process = Process(child);
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on ").unwrap().split(',').next().unwrap();
        Self { process, address: address.parse().unwrap(), _output: output }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn metric(&self, series: &str) -> Option<u64> {
        let text = get(self.address, "/metrics").body;
        assert!(text.ends_with("# EOF\n"), "{text}");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(value.parse().unwrap())
    }

    fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }
}

struct Load {
    process: Process,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Load {
    fn start(url: &str, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_demo-load"))
            .args(["--url", url])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { input: child.stdin.take(), process: Process(child), output }
    }

    fn line(&mut self) -> Line {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn progress(&mut self) -> Progress {
        let line = self.line();
        if let Line::Progress(progress) = line { Some(progress) } else { None }.unwrap()
    }

    /// The last line, once the process has ended well.
    fn summary(&mut self) -> Summary {
        loop {
            if let Line::Summary(summary) = self.line() {
                assert!(self.process.wait().success());
                return summary;
            }
        }
    }
}

/// A whole run.
fn load(url: &str, flags: &[&str]) -> Summary {
    Load::start(url, flags).summary()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn get(address: SocketAddr, path: &str) -> Answer {
    request(&mut TcpStream::connect(address).unwrap(), path, "close")
}

fn request(stream: &mut TcpStream, path: &str, connection: &str) -> Answer {
    write!(stream, "GET {path} HTTP/1.1\r\nhost: demo\r\nconnection: {connection}\r\n\r\n").unwrap();
    let head = read_head(stream);
    let mut answer = Answer { status: head[9..12].parse().unwrap(), head, body: String::new() };
    let length = answer.header("content-length").unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    answer.body = String::from_utf8(body).unwrap();
    answer
}

/// Everything up to the empty line.
fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Asks until it is so.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = now() + Duration::from_secs(30);
    while !condition() {
        assert!(now() < deadline, "waited in vain until {what}");
        thread::yield_now();
    }
}

#[expect(clippy::disallowed_methods, reason = "processes take real time")]
fn now() -> Instant {
    Instant::now()
}
