//! The gateway as another program meets it: over a real unix socket and TCP, on fake nodes.

mod support;

use std::{path::PathBuf, sync::Arc, time::Duration};

use copse_client::{
    encode::{Budget, Encoder},
    get::Downloader,
    network::Network,
    put::{PutOptions, Uploader},
    serve::{Gateway, GatewayOptions, Listener, ServeError, Token},
    tree_read::TreeReader,
};
use copse_core::{
    capability::Capability,
    extent::Extent,
    geometry::Geometry,
    layout::Layout,
    seal::ConvergenceSecret,
    tree::{Meta, Timestamp, TreeWriter, path},
};
use copse_proto::files::{
    Entry, Kind, ListRequest, PutFile, PutRequest, PutResponse, ReadRequest, StatRequest,
    files_client::FilesClient, put_request::Part,
};
use futures::stream;
use hyper_util::rt::TokioIo;
use support::{FakeNetwork, StillTime, bytes, until};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

const TOKEN: &str = "a-token-of-this-test";

/// A gateway that runs in this process, and one connection to it.
struct Served {
    address: String,
    channel: Channel,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), ServeError>>,
    dir: tempfile::TempDir,
}

impl Served {
    /// Serves a tree on a unix socket, or at another address.
    async fn start(network: &Network, capability: &str, address: Option<&str>) -> Self {
        let (capability, below) = capability.split_once('/').unwrap_or((capability, ""));
        let capability: Capability = capability.parse().expect("a capability");
        let below = path::split(below.as_bytes()).expect("a path");
        let tree =
            TreeReader::new(Downloader::new(network.clone()), &capability).expect("this network");
        let options = GatewayOptions::default();
        let gateway = Gateway::open(tree, below, secret(), options).await.expect("is there");
        let dir = tempfile::tempdir().expect("a directory");
        let socket = format!("unix:{}", dir.path().join("socket").display());
        let token = address.map(|_| Token::new(TOKEN.as_bytes()).expect("a token"));
        let wanted = address.unwrap_or(&socket).parse().expect("an address");
        let listener = Listener::bind(&wanted, token.is_some()).await.expect("listens");
        let address = match listener.address().to_string() {
            unix if unix.starts_with("unix:") => unix,
            tcp => format!("http://{tcp}"),
        };
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        let ended = tokio::spawn(gateway.serve(listener, token, stopped));
        let channel = Endpoint::from_shared(address.clone())
            .expect("an address")
            .connect()
            .await
            .expect("connects");
        Self { address, channel, stop, ended, dir }
    }

    fn files(&self) -> FilesClient<Channel> {
        FilesClient::new(self.channel.clone())
    }

    async fn stat(&self, path: &str) -> Result<Entry, Status> {
        let request = StatRequest { path: path.to_owned(), path_bytes: Vec::new() };
        Ok(self.files().stat(request).await?.into_inner().entry.expect("an entry"))
    }

    /// The paths listed, in order.
    async fn list(&self, request: ListRequest) -> Result<Vec<String>, Status> {
        let mut stream = self.files().list(request).await?.into_inner();
        let mut paths = Vec::new();
        while let Some(response) = stream.message().await? {
            assert!((1..=1000).contains(&response.entries.len()));
            paths.extend(response.entries.into_iter().map(|entry| entry.path));
        }
        Ok(paths)
    }

    async fn read(&self, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, Status> {
        let request = ReadRequest { path: path.to_owned(), path_bytes: Vec::new(), offset, length };
        let mut stream = self.files().read(request).await?.into_inner();
        let mut out = Vec::new();
        while let Some(response) = stream.message().await? {
            assert_eq!(response.offset, offset + out.len() as u64);
            assert!((1..=1 << 20).contains(&response.data.len()));
            out.extend_from_slice(&response.data);
        }
        Ok(out)
    }

    async fn put(&self, parts: Vec<Part>) -> Result<PutResponse, Status> {
        let requests = parts.into_iter().map(|part| PutRequest { part: Some(part) });
        Ok(self.files().put(stream::iter(requests)).await?.into_inner())
    }
}

fn secret() -> ConvergenceSecret {
    ConvergenceSecret::new([9; 32])
}

fn file(path: &str) -> Part {
    Part::File(PutFile { path: path.to_owned(), mtime_seconds: 1000, ..PutFile::default() })
}

/// A file and its content, in messages as large as allowed.
fn file_of(path: &str, content: &[u8]) -> Vec<Part> {
    let data = content.chunks(1 << 20).map(|data| Part::Data(data.to_vec().into()));
    std::iter::once(file(path)).chain(data).collect()
}

fn list(path: &str, recursive: bool, prefix: &str) -> ListRequest {
    let (path, prefix) = (path.to_owned(), prefix.to_owned());
    ListRequest { path, path_bytes: Vec::new(), recursive, prefix }
}

/// Stores what `write` writes, and a chunk of its own for it to use.
async fn store(
    network: &Network,
    bulk: &[u8],
    write: impl FnOnce(&mut TreeWriter, Extent),
) -> (String, Extent) {
    let _still = StillTime::begin();
    let geometry = Geometry::default_for(network.view().ring.len()).expect("enough nodes");
    let encoder = Encoder::new(secret(), Budget::default());
    let uploader = Uploader::new(network.clone(), encoder.budget().clone(), PutOptions::default());
    let mut buffer = encoder.plaintext().await;
    buffer.extend_from_slice(bulk);
    let (chunk, extent) = encoder.bulk(geometry, buffer).await.expect("encodes");
    uploader.submit(chunk).await.await.expect("stored");
    let mut writer = TreeWriter::new(geometry, secret());
    write(&mut writer, extent.clone());
    let mut chunks = writer.take_chunks();
    let finished = writer.finish().expect("complete");
    chunks.extend(finished.chunks);
    for chunk in chunks {
        uploader.put(chunk).await.expect("stored");
    }
    uploader.flush().await.expect("flushed");
    (Capability::read(network.id(), finished.root).to_string(), extent)
}

const BULK_BYTES: usize = 3_000_000;
const MANY: usize = 2500;

/// A tree with one of everything.
async fn everything(network: &Network) -> (String, Extent, Vec<u8>) {
    let bulk = bytes(1, BULK_BYTES);
    let meta = |mode| Meta::new(mode, Timestamp::new(-5, 7).expect("a time"));
    let write = |tree: &mut TreeWriter, extent: Extent| {
        tree.begin_directory(b"root", meta(0o750)).expect("root");
        tree.begin_file(b"bulk", meta(0o640)).expect("bulk");
        tree.push_extent(extent).expect("a piece");
        tree.push_hole(2 << 20).expect("a hole");
        tree.push_bytes(b"tail").expect("a tail");
        tree.end_file().expect("bulk");
        tree.begin_directory(b"deep", meta(0o755)).expect("deep");
        tree.begin_directory(b"er", meta(0o755)).expect("er");
        tree.add_file(b"small", meta(0o600), b"small").expect("small");
        tree.end_directory().expect("er");
        tree.end_directory().expect("deep");
        tree.add_file(b"deep-", meta(0o600), b"").expect("deep-");
        tree.begin_directory(b"empty", meta(0o700)).expect("empty");
        tree.end_directory().expect("empty");
        tree.add_symlink(b"link", meta(0o777), b"deep/er").expect("link");
        tree.begin_directory(b"many", meta(0o755)).expect("many");
        for number in 0..MANY {
            let name = format!("{number:06}");
            tree.add_file(name.as_bytes(), meta(0o644), name.as_bytes()).expect("one");
        }
        tree.end_directory().expect("many");
        tree.add_file(b"odd \xff", meta(0o644), b"odd").expect("odd");
        tree.end_directory().expect("root");
    };
    let (capability, extent) = store(network, &bulk, write).await;
    (capability, extent, bulk)
}

#[tokio::test]
async fn a_tree_is_described_listed_and_read_over_a_unix_socket() {
    let fake = FakeNetwork::start(8).await;
    let network = fake.connect().await;
    let (capability, _, bulk) = everything(&network).await;
    let served = Served::start(&network, &capability, None).await;

    let root = served.stat("").await.expect("the root");
    assert_eq!((root.kind(), root.mode, root.path.as_str()), (Kind::Directory, 0o750, ""));
    let entry = served.stat("/bulk").await.expect("a file");
    let size = BULK_BYTES as u64 + (2 << 20) + 4;
    assert_eq!((entry.kind(), entry.size, entry.mode), (Kind::File, size, 0o640));
    assert_eq!((entry.mtime_seconds, entry.mtime_nanos), (-5, 7));
    assert_eq!((entry.path.as_str(), entry.path_bytes.len()), ("bulk", 0));
    let link = served.stat("link").await.expect("a link");
    assert_eq!((link.kind(), &link.symlink_target[..]), (Kind::Symlink, &b"deep/er"[..]));

    // A name that is not UTF-8 can be shown, and asked for.
    let listed = served.files().list(list("", false, "odd")).await.expect("lists");
    let odd = listed.into_inner().message().await.expect("a message").expect("one").entries;
    assert_eq!((odd[0].path.as_str(), &odd[0].path_bytes[..]), ("odd \u{fffd}", &b"odd \xff"[..]));
    let request = StatRequest { path: String::new(), path_bytes: odd[0].path_bytes.clone() };
    served.files().stat(request).await.expect("is there");

    let top = ["bulk", "deep", "deep-", "empty", "link", "many", "odd \u{fffd}"];
    assert_eq!(served.list(list("", false, "")).await.expect("lists"), top);
    assert_eq!(
        served.list(list("", true, "deep")).await.expect("lists"),
        ["deep", "deep/er", "deep/er/small", "deep-"]
    );
    assert_eq!(
        served.list(list("", true, "deep/er")).await.expect("lists"),
        ["deep/er", "deep/er/small"]
    );
    assert_eq!(served.list(list("deep", true, "er/")).await.expect("lists"), ["deep/er/small"]);
    assert!(served.list(list("empty", true, "")).await.expect("lists").is_empty());
    assert!(served.list(list("", true, "nothing/such")).await.expect("lists").is_empty());
    let many = served.list(list("many", false, "")).await.expect("lists");
    assert_eq!(many.len(), MANY);
    assert!(many.is_sorted());
    let all = served.list(list("", true, "")).await.expect("lists");
    assert_eq!(all.len(), top.len() + 2 + MANY);
    assert_eq!(
        served.list(list("", true, "many/00249")).await.expect("lists"),
        (2490..2500).map(|number| format!("many/{number:06}")).collect::<Vec<_>>()
    );

    let mut content = bulk;
    content.resize(BULK_BYTES + (2 << 20), 0);
    content.extend_from_slice(b"tail");
    for (offset, length) in [
        (0, 0),
        (0, 1),
        (65_535, 2),
        (BULK_BYTES - 1, 2),
        (BULK_BYTES + 5, 2 << 20),
        (1_000_000, 3_000_000),
        (content.len() - 3, 100),
        (content.len(), 0),
        (content.len(), 10),
    ] {
        let got = served.read("bulk", offset as u64, length as u64).await.expect("reads");
        let end = if length == 0 { content.len() } else { content.len().min(offset + length) };
        assert!(got == content[offset..end], "{length} bytes at {offset}: {} came", got.len());
    }
    assert_eq!(served.read("deep/er/small", 0, 0).await.expect("reads"), b"small");
    assert!(served.read("deep-", 0, 0).await.expect("reads").is_empty());
}

#[tokio::test]
async fn a_part_of_a_tree_can_be_served_alone() {
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &format!("{capability}/deep"), None).await;
    assert_eq!(served.list(list("", true, "")).await.expect("lists"), ["er", "er/small"]);
    assert_eq!(served.read("er/small", 1, 3).await.expect("reads"), b"mal");
    assert_eq!(served.stat("bulk").await.expect_err("outside").code(), Code::NotFound);
    let error = served.stat("../bulk").await.expect_err("outside");
    assert_eq!(error.code(), Code::InvalidArgument);

    let served = Served::start(&network, &format!("{capability}/deep/er/small"), None).await;
    assert_eq!(served.stat("").await.expect("the file").size, 5);
    assert_eq!(served.read("", 0, 0).await.expect("reads"), b"small");
    let error = served.list(list("", false, "")).await.expect_err("no directory");
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn errors_say_what_they_are_about() {
    let fake = FakeNetwork::start(8).await;
    let network = fake.connect().await;
    let (capability, extent, _) = everything(&network).await;
    let need = extent.geometry.data().to_string();
    let served = Served::start(&network, &capability, None).await;

    let mut request =
        Request::new(StatRequest { path: "no/such".to_owned(), path_bytes: Vec::new() });
    request.metadata_mut().insert("x-request-id", "of-the-test".parse().expect("ascii"));
    let error = served.files().stat(request).await.expect_err("not there");
    let details = error.get_error_details();
    assert_eq!(error.code(), Code::NotFound);
    assert_eq!(details.error_info().expect("has").reason, "NO_SUCH_ENTRY");
    assert_eq!(details.resource_info().expect("has").resource_name, "/no");
    assert_eq!(details.request_info().expect("has").request_id, "of-the-test");

    let error = served.read("bulk", 1 << 40, 1).await.expect_err("behind the end");
    let details = error.get_error_details();
    assert_eq!(error.code(), Code::OutOfRange);
    assert_eq!(details.resource_info().expect("has").resource_name, "/bulk");
    assert_eq!(details.error_info().expect("has").metadata["size"], "5097156");
    assert!(!details.request_info().expect("has").request_id.is_empty());

    let error = served.read("deep", 0, 0).await.expect_err("a directory");
    assert_eq!(error.code(), Code::FailedPrecondition);
    let error = served.stat("bulk/below").await.expect_err("behind a file");
    assert_eq!(error.code(), Code::NotFound);
    let error = served.stat("a/../b").await.expect_err("dots");
    assert_eq!(error.code(), Code::InvalidArgument);
    let details = error.get_error_details();
    assert_eq!(details.bad_request().expect("has").field_violations[0].field, "path");

    // Every holder has lost the chunk: that is data loss, and says how much is there.
    for node in &fake.nodes {
        node.lose(extent.chunk);
    }
    let mut error = served.read("bulk", 0, 10).await.expect_err("lost");
    for _ in 0..20 {
        // For whoever waits, a pause of the machine is a node that does not answer: then once more.
        if error.code() != Code::Unavailable {
            break;
        }
        error = served.read("bulk", 0, 10).await.expect_err("lost");
    }
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    let details = error.get_error_details();
    let info = details.error_info().expect("has");
    assert_eq!(info.reason, "TOO_FEW_SHARDS");
    assert_eq!((info.metadata["have"].as_str(), &info.metadata["need"]), ("0", &need));
    assert_eq!(info.metadata["chunk"], extent.chunk.to_string());
    assert_eq!(info.metadata["path"], "/bulk");

    // The rest is still served.
    assert_eq!(served.read("deep/er/small", 0, 0).await.expect("reads"), b"small");

    // Nodes that do not answer may have it: try again.
    for node in &fake.nodes {
        node.kill();
    }
    let error = served.read("bulk", 0, 10).await.expect_err("unreachable");
    assert_eq!(error.code(), Code::Unavailable, "{error}");
    let details = error.get_error_details();
    assert!(details.retry_info().expect("has").retry_delay.expect("has") > Duration::ZERO);
    assert_eq!(details.error_info().expect("has").metadata["need"], need);
}

#[tokio::test]
async fn over_tcp_nobody_calls_without_the_token() {
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &capability, Some("127.0.0.1:0")).await;
    assert!(served.address.starts_with("http://127.0.0.1:") && !served.address.ends_with(":0"));

    let error = served.stat("").await.expect_err("no token");
    assert_eq!(error.code(), Code::Unauthenticated);
    let details = error.get_error_details();
    assert_eq!(details.error_info().expect("has").reason, "UNAUTHENTICATED");
    assert!(details.request_info().is_some());
    let error = served.put(file_of("a", b"a")).await.expect_err("no token");
    assert_eq!(error.code(), Code::Unauthenticated);

    let show = |token: &'static str| {
        move |mut request: Request<()>| {
            let header = format!("Bearer {token}").parse().expect("ascii");
            request.metadata_mut().insert("authorization", header);
            Ok(request)
        }
    };
    let request = StatRequest::default();
    let mut wrong =
        FilesClient::with_interceptor(served.channel.clone(), show("a-token-of-that-test"));
    let error = wrong.stat(request.clone()).await.expect_err("a wrong token");
    assert_eq!(error.code(), Code::Unauthenticated);
    let mut right = FilesClient::with_interceptor(served.channel.clone(), show(TOKEN));
    right.stat(request).await.expect("the token");

    // Probes have no token.
    let mut probe = HealthClient::new(served.channel.clone());
    let health = probe.check(HealthCheckRequest::default()).await.expect("answers");
    assert_eq!(health.into_inner().status, 1);
}

#[tokio::test]
async fn connections_without_a_call_lock_nobody_out() {
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &capability, Some("127.0.0.1:0")).await;
    let place = served.address.strip_prefix("http://").expect("an address");
    let endpoint = || Endpoint::from_shared(served.address.clone()).expect("an address");
    let call = async {
        // More than there are places: those that say nothing, and those that have no token.
        let mut silent = Vec::new();
        let mut strangers = Vec::new();
        for _ in 0..70 {
            silent.push(tokio::net::TcpStream::connect(place).await.expect("connects"));
            let stranger = endpoint().connect().await.expect("connects");
            let mut probe = HealthClient::new(stranger.clone());
            let request = HealthCheckRequest::default();
            let watched = probe.watch(request).await.expect("answers").into_inner();
            strangers.push((stranger, watched));
        }
        let channel = endpoint().connect().await.expect("connects");
        let mut files = FilesClient::with_interceptor(channel, |mut request: Request<()>| {
            let header = format!("Bearer {TOKEN}").parse().expect("ascii");
            request.metadata_mut().insert("authorization", header);
            Ok(request)
        });
        files.stat(StatRequest::default()).await.expect("the token is right");
    };
    tokio::time::timeout(Duration::from_secs(60), call).await.expect("nobody is in the way");
}

#[tokio::test]
async fn health_and_both_versions_of_reflection_answer() {
    macro_rules! reflection {
        ($version:ident, $channel:expr) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest as Ask,
                server_reflection_response::MessageResponse as Answer,
            };
            let ask =
                |ask| ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
            let requests = [
                ask(Ask::ListServices(String::new())),
                ask(Ask::FileContainingSymbol("copse.files.v1.Files".to_owned())),
            ];
            let mut client = ServerReflectionClient::new($channel);
            let answers = client.server_reflection_info(futures::stream::iter(requests));
            let mut answers = answers.await.expect("answers").into_inner();
            let first = answers.message().await.expect("a message").expect("services");
            let Some(Answer::ListServicesResponse(list)) = first.message_response else {
                panic!("no list")
            };
            let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            assert_eq!(names, ["copse.files.v1.Files", "grpc.health.v1.Health"]);
            let second = answers.message().await.expect("a message").expect("a file");
            let Some(Answer::FileDescriptorResponse(files)) = second.message_response else {
                panic!("no descriptor")
            };
            assert!(!files.file_descriptor_proto.is_empty());
        }};
    }
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &capability, None).await;
    reflection!(v1, served.channel.clone());
    reflection!(v1alpha, served.channel.clone());
    for service in ["", "copse.files.v1.Files"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let health = HealthClient::new(served.channel.clone()).check(request).await;
        assert_eq!(health.expect("answers").into_inner().status, 1, "{service}");
    }
}

#[tokio::test]
async fn what_is_put_comes_back_and_is_stored_once() {
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &capability, None).await;
    let _still = StillTime::begin();

    // A file of several chunks and a tail, in messages of odd sizes.
    let full = Layout::largest(Geometry::default_for(4).expect("a code")).plaintext_bytes_max();
    let large = bytes(3, 2 * full + 70_001);
    let mut parts = vec![file("large")];
    let mut rest = &large[..];
    for size in [1, 999_983].into_iter().cycle() {
        let (now, next) = rest.split_at(rest.len().min(size));
        parts.push(Part::Data(now.to_vec().into()));
        rest = next;
        if rest.is_empty() {
            break;
        }
    }
    let put = served.put(parts).await.expect("stored");
    assert_eq!((put.files, put.bytes), (1, large.len() as u64));
    let alone = Served::start(&network, &put.capability, None).await;
    let root = alone.stat("").await.expect("the file");
    assert_eq!((root.kind(), root.mode, root.mtime_seconds), (Kind::File, 0o644, 1000));
    assert!(alone.read("", 0, 0).await.expect("reads") == large, "other bytes came back");

    // A tree, its files in no order; large ones between small ones.
    let mut parts = file_of("b/large", &large);
    parts.extend(file_of("b/a/small", b"small"));
    parts.extend(file_of("empty", b""));
    parts.extend(file_of("b.txt", &large[..1_048_577]));
    parts.extend(file_of("a", &large[..1_048_576]));
    let sent = fake.total(|seen| &seen.put_bytes);
    let put = served.put(parts.clone()).await.expect("stored");
    assert_eq!(put.files, 5);
    let new = fake.total(|seen| &seen.put_bytes) - sent;
    assert!(new < 8 << 20, "{new} bytes were sent of a file that was there already");
    let tree = Served::start(&network, &put.capability, None).await;
    assert_eq!(
        tree.list(list("", true, "")).await.expect("lists"),
        ["a", "b", "b/a", "b/a/small", "b/large", "b.txt", "empty"]
    );
    for (path, expected) in [
        ("b/large", &large[..]),
        ("b/a/small", b"small"),
        ("empty", b""),
        ("b.txt", &large[..1_048_577]),
        ("a", &large[..1_048_576]),
    ] {
        assert!(tree.read(path, 0, 0).await.expect("reads") == expected, "{path} is not the same");
    }
    // The same files in another order are the same tree.
    let mut again = Vec::new();
    let files: Vec<_> = parts.chunk_by(|_, next| !matches!(next, Part::File(_))).collect();
    files.iter().rev().for_each(|file| again.extend_from_slice(file));
    assert_eq!(served.put(again).await.expect("stored").capability, put.capability);
}

#[tokio::test]
async fn callers_may_come_any_way_and_what_they_put_is_cut_as_told() {
    const CHUNK_BYTES: usize = 40_000;
    let fake = FakeNetwork::start(6).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let capability: Capability = capability.parse().expect("a capability");
    let tree = TreeReader::new(Downloader::new(network.clone()), &capability).expect("is here");
    let geometry = Some("2+2".parse().expect("a geometry"));
    let options = GatewayOptions { geometry, chunk_bytes_max: Some(CHUNK_BYTES) };
    let gateway = Gateway::open(tree, Vec::new(), secret(), options).await.expect("is there");
    let (near, far) = tokio::io::duplex(1 << 16);
    let callers = stream::iter([Ok(far)]);
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let ended = tokio::spawn(gateway.serve_callers(callers, None, stopped));
    let mut near = Some(near);
    let connect = tower::service_fn(move |_| {
        std::future::ready(near.take().map(TokioIo::new).ok_or("there is one stream"))
    });
    let endpoint = Endpoint::from_static("http://gateway.invalid");
    let channel = endpoint.connect_with_connector(connect).await.expect("connects");
    let mut files = FilesClient::new(channel);

    // Three full chunks, and an end that is a little more than an eighth of one; then one that is no more.
    for (end, chunks) in [(CHUNK_BYTES / 8 + 1, 4), (CHUNK_BYTES / 8, 3)] {
        let before = fake.chunks().len();
        let content = bytes(u64::try_from(end).expect("few"), 3 * CHUNK_BYTES + end);
        let requests =
            file_of("file", &content).into_iter().map(|part| PutRequest { part: Some(part) });
        let put = files.put(stream::iter(requests)).await.expect("stored").into_inner();
        // One more holds the name.
        assert_eq!(fake.chunks().len() - before, chunks + 1);
        let alone = Served::start(&network, &put.capability, None).await;
        assert!(alone.read("", 0, 0).await.expect("reads") == content, "other bytes came back");
    }
    drop(files);
    drop(stop);
    ended.await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_put_that_makes_no_sense_is_refused_with_the_field() {
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &capability, None).await;
    let with = |change: &dyn Fn(&mut PutFile)| {
        let mut file = PutFile { path: "a".to_owned(), mtime_seconds: 1, ..PutFile::default() };
        change(&mut file);
        vec![Part::File(file)]
    };
    let both = [file_of("a", b"1"), file_of("a/b", b"2")].concat();
    let twice = [file_of("a/b", b"1"), file_of("/a//b/", b"2")].concat();
    let huge = vec![file("a"), Part::Data(vec![0; (1 << 20) + 1].into())];
    // Over what is decoded at all.
    let larger = vec![file("a"), Part::Data(vec![0; 3 << 20].into())];
    for (parts, field) in [
        (vec![], "part"),
        (vec![Part::Data(b"lost".to_vec().into())], "data"),
        (file_of("", b"1"), "file.path"),
        (both, "file.path"),
        (twice, "file.path"),
        (huge, "data"),
        (larger, "data"),
        (with(&|file| file.mode = 0o100_644), "file.mode"),
        (with(&|file| file.mtime_nanos = 1_000_000_000), "file.mtime_nanos"),
        (with(&|file| file.path = "a/../b".to_owned()), "path"),
        (with(&|file| file.path_bytes = b"a\0".to_vec()), "path_bytes"),
    ] {
        let error = served.put(parts).await.expect_err(field);
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error}");
        let details = error.get_error_details();
        let violations = &details.bad_request().expect("has").field_violations;
        assert_eq!(violations[0].field, field, "{error}");
    }
    // Too many files for one call: the caller is told another way.
    let many = (0..20_000).map(|number| file(&number.to_string())).collect();
    let error = served.put(many).await.expect_err("too many");
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("copse put"), "{error}");
    assert!(error.get_error_details().quota_failure().is_some());
    // Nothing is held afterwards.
    served.put(file_of("a", b"1")).await.expect("stored");
}

#[tokio::test]
async fn a_put_that_cannot_be_made_safe_is_refused() {
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &capability, None).await;
    let _still = StillTime::begin();
    for node in &fake.nodes {
        node.faults.full.store(true, std::sync::atomic::Ordering::SeqCst);
    }
    let error = served.put(file_of("a", &bytes(8, 2 << 20))).await.expect_err("all are full");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let details = error.get_error_details();
    assert_eq!(details.error_info().expect("has").reason, "STORE_FULL");
    assert!(details.quota_failure().is_some());
}

#[tokio::test]
async fn a_stop_lets_running_calls_end() {
    let fake = FakeNetwork::start(4).await;
    let network = fake.connect().await;
    let (capability, ..) = everything(&network).await;
    let served = Served::start(&network, &capability, None).await;
    let size = served.stat("bulk").await.expect("a file").size;
    let request = ReadRequest { path: "bulk".to_owned(), ..ReadRequest::default() };
    let mut stream = served.files().read(request).await.expect("reads").into_inner();
    let first = stream.message().await.expect("a message").expect("data").data.len();
    // The clock stands still: it ends only because all calls have ended.
    let _still = StillTime::begin();
    served.stop.send(()).expect("it runs");
    let mut got = first as u64;
    while let Some(response) = stream.message().await.expect("goes on") {
        got += response.data.len() as u64;
    }
    assert_eq!(got, size);
    until("it ends without waiting for the connection to close", || served.ended.is_finished())
        .await;
    served.ended.await.expect("no panic").expect("ends well");
    let socket: PathBuf = served.dir.path().join("socket");
    assert!(!socket.exists(), "the socket is left behind");
    drop(Arc::new(fake));
}
