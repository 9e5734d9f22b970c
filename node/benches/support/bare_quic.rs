//! Bytes over QUIC and nothing else, with the node's own endpoint settings: what the node is set
//! against.

use std::net::SocketAddr;

use bytes::Bytes;
use copse_node::{
    peer::endpoint::{Congestion, PeerSocket, bind, open},
    tls::NodeTls,
};

pub(crate) fn endpoint(number: u8) -> (NodeTls, quinn::Endpoint, SocketAddr) {
    let tls = NodeTls::from_seed(&[number; 32]).expect("a key");
    let socket = PeerSocket::Udp(bind(([127, 0, 0, 1], 0).into()).expect("a port"));
    let endpoint = open(&tls, socket, Congestion::Cubic, [number; 32]).expect("an endpoint");
    let address = endpoint.local_addr().expect("an address");
    (tls, endpoint, address)
}

/// Reads a stream to its end and answers with its length.
pub(crate) async fn drain(mut send: quinn::SendStream, mut receive: quinn::RecvStream) {
    let mut got = 0;
    while let Ok(Some(chunk)) = receive.read_chunk(1 << 20, true).await {
        got += chunk.bytes.len();
    }
    let _ = send.write_all(&got.to_le_bytes()).await;
    let _ = send.finish();
}

/// Sends bytes on a stream of their own and waits until they were read.
pub(crate) async fn bare(connection: &quinn::Connection, bytes: Bytes) {
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    let sent = bytes.len();
    send.write_chunk(bytes).await.expect("written");
    send.finish().expect("open");
    let got = receive.read_to_end(8).await.expect("an answer");
    assert_eq!(got, sent.to_le_bytes());
}
