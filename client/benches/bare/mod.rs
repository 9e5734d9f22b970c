//! Bare gRPC between two processes, with the same messages, windows and TLS as Copse uses: what a
//! transfer costs before anything is stored, verified, decoded or decrypted.

use std::{
    io::BufRead as _,
    net::SocketAddr,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use copse_client::{content::FileReader, get::Downloader, profile::Profile, tree_read::TreeReader};
use copse_core::capability::Capability;
use copse_proto::{
    door::{
        GetReply, GetRequest, HasReply, HasRequest, Held, PutReply, PutRequest,
        get_reply::Part,
        put_request::Part as Piece,
        shards_client::ShardsClient,
        shards_server::{Shards, ShardsServer},
    },
    routes::Routes,
};
use futures::stream::{self, BoxStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{
        Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig,
    },
};

/// Bytes in one message, as the door sends them.
const MESSAGE_BYTES: usize = 512 << 10;
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const FRAME_BYTES: u32 = 256 << 10;

/// Answers with zeros, and takes what comes, as fast as it can.
struct Zeros;

#[tonic::async_trait]
impl Shards for Zeros {
    type PutStream = BoxStream<'static, Result<PutReply, Status>>;
    type GetStream = BoxStream<'static, Result<GetReply, Status>>;

    async fn put(
        &self,
        request: Request<Streaming<PutRequest>>,
    ) -> Result<Response<Self::PutStream>, Status> {
        let mut pieces = request.into_inner();
        while pieces.message().await?.is_some() {}
        Ok(Response::new(Box::pin(stream::iter([Ok(PutReply::default())]))))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let block = Bytes::from(vec![0; MESSAGE_BYTES]);
        let messages = request.get_ref().length.div_ceil(MESSAGE_BYTES as u64);
        let messages =
            (0..messages).map(move |_| Ok(GetReply { part: Some(Part::Data(block.clone())) }));
        Ok(Response::new(Box::pin(stream::iter(messages))))
    }

    async fn has(&self, _: Request<HasRequest>) -> Result<Response<HasReply>, Status> {
        Ok(Response::new(HasReply { held: vec![Held { indices: vec![1], unsettled: false }] }))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// What a process of this program does in the role named.
pub(crate) fn role(role: &str, arguments: &[String]) {
    match (role, arguments) {
        ("bare-server", []) => runtime().block_on(serve()),
        ("bare-client", [way, address, certificate, bytes]) => runtime().block_on(async {
            let channel = connect(address, certificate).await;
            let bytes = bytes.parse().expect("a number");
            match way.as_str() {
                "get" => read(channel, bytes).await,
                "put" => write(channel, bytes).await,
                other => panic!("unknown way {other:?}"),
            }
        }),
        other => panic!("unknown role {other:?}"),
    }
}

async fn serve() {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let certificate = rcgen::CertificateParams::new(vec!["bare".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .expect("a certificate");
    let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    println!("{}", certificate.pem().replace("\r\n", "\n").replace('\n', "|"));
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .expect("TLS")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true)
        .serve_with_incoming(
            Routes::new().with(ShardsServer::new(Zeros)),
            tokio_stream::wrappers::TcpListenerStream::new(listener),
        )
        .await
        .expect("served");
}

async fn connect(address: &str, certificate: &str) -> ShardsClient<Channel> {
    let certificate = Certificate::from_pem(certificate.replace('|', "\n"));
    let channel = Endpoint::from_shared(format!("https://{address}"))
        .expect("an address")
        .tls_config(ClientTlsConfig::new().ca_certificate(certificate).domain_name("bare"))
        .expect("TLS")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true)
        .connect()
        .await
        .expect("connected");
    ShardsClient::new(channel)
}

async fn read(mut client: ShardsClient<Channel>, bytes: u64) {
    let request = GetRequest { length: bytes, ..GetRequest::default() };
    let mut replies = client.get(request).await.expect("an answer").into_inner();
    let mut received = 0;
    while let Some(reply) = replies.message().await.expect("a message") {
        if let Some(Part::Data(data)) = reply.part {
            received += data.len() as u64;
        }
    }
    assert!(received >= bytes);
}

async fn write(mut client: ShardsClient<Channel>, bytes: u64) {
    let block = Bytes::from(vec![0; MESSAGE_BYTES]);
    let messages = bytes.div_ceil(MESSAGE_BYTES as u64);
    let pieces = (0..messages).map(move |_| PutRequest { part: Some(Piece::Data(block.clone())) });
    let mut replies = client.put(stream::iter(pieces)).await.expect("an answer").into_inner();
    assert!(replies.message().await.expect("a message").is_some());
}

struct Bare {
    server: Child,
    address: SocketAddr,
    certificate: String,
}

impl Bare {
    fn start() -> Self {
        let mut server =
            super::myself(&["bare-server"]).stdout(Stdio::piped()).spawn().expect("started");
        let mut lines = std::io::BufReader::new(server.stdout.take().expect("piped")).lines();
        let mut line = || lines.next().expect("a line").expect("readable");
        let address = line().parse().expect("an address");
        let certificate = line();
        Self { server, address, certificate }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// One stream of so many bytes between two processes, each started anew as a command is. `way` is get
/// or put, as the client sees it.
pub(crate) fn stream(way: &str, bytes: u64) -> Duration {
    let bare = Bare::start();
    let (address, count) = (bare.address.to_string(), bytes.to_string());
    let started = Instant::now();
    let status = super::myself(&["bare-client", way, &address, &bare.certificate, &count])
        .status()
        .expect("started");
    assert!(status.success());
    started.elapsed()
}

/// Reads of 4 KiB at random places of a large file, against a bare unary call.
pub(crate) fn latency(home: &Path, capability: &str) {
    const READS: usize = 500;
    let capability: Capability = capability.parse().expect("a capability");
    let bare = Bare::start();
    runtime().block_on(async {
        let mut client = connect(&bare.address.to_string(), &bare.certificate).await;
        let profile = Profile::open(home).expect("a profile");
        let network = profile.connect().await.expect("connected");
        let downloader = Downloader::new(network);
        let tree = TreeReader::new(downloader.clone(), &capability).expect("this network's");
        let entry = tree.root().await.expect("found");
        let mut unary = Vec::new();
        let mut ranges = Vec::new();
        let requests = downloader.counts().requests;
        for number in 0..READS as u64 {
            let started = Instant::now();
            client.has(HasRequest::default()).await.expect("an answer");
            unary.push(started.elapsed().as_secs_f64() * 1e6);
            let offset = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (255 << 20);
            let started = Instant::now();
            let bytes = FileReader::new(downloader.clone(), &entry, offset..offset + 4096)
                .expect("a range")
                .next()
                .await
                .expect("read")
                .expect("not empty");
            ranges.push(started.elapsed().as_secs_f64() * 1e6);
            assert_eq!(bytes.len(), 4096);
        }
        let asked = downloader.counts().requests - requests;
        let mut ratio: Vec<f64> = ranges.iter().zip(&unary).map(|(a, b)| a / b).collect();
        println!(
            "random reads of 4 KiB: p50 {:.0} us, bare unary call p50 {:.0} us, median ratio {:.2} \
             (target 3); {:.3} requests a read",
            super::median(&mut ranges),
            super::median(&mut unary),
            super::median(&mut ratio),
            asked as f64 / READS as f64,
        );
    });
}
