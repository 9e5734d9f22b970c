//! The production connector against a real TLS listener: only the node's own key passes.

use std::{net::SocketAddr, sync::Arc};

use copse_client::{
    connect::{Connector as _, TlsConnector},
    network::Network,
    profile::Door,
};
use copse_core::{
    directory::Directory,
    ids::{NetworkId, NodeId},
};
use copse_proto::tls::WrongNode;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// A listener with a node's certificate, which sends back what it gets.
async fn listen() -> (NodeId, SocketAddr) {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let node = NodeId::from_slice(key.public_key_raw()).expect("32 bytes");
    let params = CertificateParams::new(vec!["node.invalid".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate").der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .expect("a configuration");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A refused handshake ends here.
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut word = [0; 5];
                if tls.read_exact(&mut word).await.is_ok() {
                    tls.write_all(&word).await.expect("sends");
                }
            });
        }
    });
    (node, address)
}

#[tokio::test]
async fn the_right_node_is_talked_to() {
    let (node, address) = listen().await;
    let connector = TlsConnector::default();
    for _ in 0..2 {
        let mut stream = connector.connect(node, address).await.expect("connects");
        stream.write_all(b"hello").await.expect("sends");
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.expect("receives");
        assert_eq!(&word, b"hello");
    }
}

#[tokio::test]
async fn another_node_at_the_address_is_refused_and_the_error_says_so() {
    let (node, address) = listen().await;
    let expected = NodeId::new([9; 32]);
    let error = match TlsConnector::default().connect(expected, address).await {
        Ok(_) => panic!("the wrong node was let in"),
        Err(error) => error,
    };
    assert_eq!(WrongNode::in_chain(&error), Some(WrongNode { expected, answered: node }));

    let network = NetworkId::new([1; 32]);
    let doors = vec![Door { node: expected, addresses: vec![address] }];
    let connector = Arc::new(TlsConnector::default());
    let error = Network::connect(network, doors, Directory::new(network), connector)
        .await
        .err()
        .expect("no door is the right one");
    assert!(error.to_string().contains("another node answers"), "{error}");
    assert!(error.to_string().contains("join again"), "{error}");
}
