//! The text, the document, the rules that name metrics, and the endpoint over real sockets.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use copse_proto::door::{RepairCounters, ScrubInfo, StoreInfo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

use super::*;

fn info() -> InfoReply {
    InfoReply {
        node_id: vec![0xab; 32],
        version: "1.0 \"new\"\n\\".to_owned(),
        uptime_seconds: 7,
        store: Some(StoreInfo { shards: 12, accepting: true, ..StoreInfo::default() }),
        peers: vec![
            PeerInfo { standing: "alive".to_owned(), connected: true, ..PeerInfo::default() },
            PeerInfo {
                standing: "down".to_owned(),
                untrusted: "it lied".to_owned(),
                ..PeerInfo::default()
            },
        ],
        repair: Some(RepairInfo {
            chunks: vec![
                MarginCount { margin: 6, count: 10 },
                MarginCount { margin: -1, count: 7 },
                MarginCount { margin: 6, count: 1 },
            ],
            chunks_whole: 9,
            chunks_waiting: 2,
            chunks_lost: 1,
            chunks_unfinished: 4,
            survives_nodes: Some(0),
            counters: Some(RepairCounters { audits: 5, audits_failed: 2, ..Default::default() }),
            ..RepairInfo::default()
        }),
        scrub: Some(ScrubInfo { permille: 125, ..ScrubInfo::default() }),
        ..InfoReply::default()
    }
}

#[test]
fn every_number_has_its_line() {
    let text = render(&info());
    let node = format!("copse_node_info{{node=\"{}\",version=", "ab".repeat(32));
    assert!(text.contains(&(node + "\"1.0 \\\"new\\\"\\n\\\\\"} 1\n")), "{text}");
    for line in [
        "# HELP copse_store_shards Shards held.",
        "# TYPE copse_store_shards gauge",
        "# TYPE copse_audits_total counter",
        "copse_store_shards 12",
        "copse_store_accepting 1",
        "copse_peers{standing=\"alive\"} 1",
        "copse_peers{standing=\"dead\"} 0",
        "copse_peers_untrusted 1",
        "copse_chunks{margin=\"-1\"} 7",
        "copse_chunks{margin=\"6\"} 11",
        "copse_chunks_thin 2",
        "copse_chunks_lost 1",
        "copse_chunks_unfinished 4",
        "copse_survives_nodes 0",
        "copse_audits_total{outcome=\"true\"} 3",
        "copse_audits_total{outcome=\"false\"} 2",
        "copse_scrub_progress_ratio 0.125",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.lines().any(|line| line.starts_with("copse_survives_zones ")), "not known");
    // A node that says nothing yet has no numbers, only an identity.
    let silent = render(&InfoReply::default());
    let samples = silent.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(samples, 2 + STANDINGS.len() + 2, "{silent}");
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    let mut seen = BTreeSet::new();
    for metric in METRICS {
        assert!(seen.insert(metric.name), "{} is there twice", metric.name);
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(metric.name.starts_with("copse_") && plain(metric.name), "{}", metric.name);
        assert_eq!(
            metric.name.ends_with("_total"),
            metric.kind == Kind::Counter,
            "{}",
            metric.name
        );
        assert!(
            metric.help.ends_with('.') && !metric.help.contains(['\n', '|']),
            "{}",
            metric.help
        );
        assert!(metric.labels.iter().all(|label| plain(label)));
    }
}

/// Rewrites the document when it is stale and then fails, so that the second run passes.
#[test]
fn the_document_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let wanted = document();
    if fs::read_to_string(&path).unwrap_or_default() != wanted {
        fs::write(&path, wanted).expect("written");
        panic!("{} was stale and has been written anew: commit it", path.display());
    }
}

#[test]
fn the_alert_rules_name_only_metrics_that_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/alerts.yml");
    let rules = fs::read_to_string(&path).expect("the rules");
    let mut named = BTreeSet::new();
    for line in rules.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let words = line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        named.extend(words.filter(|word| word.starts_with("copse_")));
    }
    assert!(named.len() >= 7, "{named:?}");
    for name in named {
        assert!(METRICS.iter().any(|metric| metric.name == name), "{name} is no metric");
    }
}

struct Node {
    hangs: bool,
}

#[async_trait]
impl Source for Node {
    async fn info(&self) -> InfoReply {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        info()
    }
}

/// An endpoint, its address, and what stops it.
async fn endpoint(
    hangs: bool,
) -> (std::net::SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel();
    let stopped = async {
        let _ = stopped.await;
    };
    let limits = serve::Limits {
        head: Duration::from_millis(500),
        answer: Duration::from_millis(500),
        connection: Duration::from_secs(5),
    };
    let served = serve::serve_within(limits, listener, Arc::new(Node { hangs }), stopped);
    let served = tokio::spawn(served);
    (address, stop, served)
}

async fn ask(address: std::net::SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an end");
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn a_collector_gets_the_metrics_and_nothing_else_is_there() {
    let (address, stop, served) = endpoint(false).await;
    for (head, status, body) in [
        ("GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "200", "copse_store_shards 12\n"),
        ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200", "version=0.0.4"),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", "200", "ok\n"),
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "404", "/metrics"),
        ("POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "405", "allow: GET"),
        ("nonsense\r\n\r\n", "400", ""),
    ] {
        let answer = ask(address, head).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{head}: {answer}");
        assert!(answer.contains(body), "{head}: {answer}");
    }
    let head = ask(address, "HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(head.contains("content-length") && head.ends_with("\r\n\r\n"), "{head}");
    stop.send(()).expect("it runs");
    served.await.expect("ends");
    assert!(TcpStream::connect(address).await.is_err(), "the port is free again");
}

#[tokio::test]
async fn a_node_that_hangs_is_told_and_stops_at_once() {
    let (address, stop, served) = endpoint(true).await;
    let waiting = TcpStream::connect(address).await.expect("connects");
    let answer = ask(address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    stop.send(()).expect("it runs");
    timeout(Duration::from_secs(5), served).await.expect("at once").expect("ends");
    drop(waiting);
}

#[tokio::test]
async fn those_who_connect_and_say_nothing_do_not_keep_others_out() {
    let (address, _stop, _served) = endpoint(false).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.expect("connects"));
    }
    // Three times sixteen silent ones, half a second each: then it is our turn.
    let asking = ask(address, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n");
    let answer = timeout(Duration::from_secs(60), asking).await.expect("in its turn");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(silent);
}
