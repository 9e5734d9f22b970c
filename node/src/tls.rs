//! The node's two faces in TLS: its raw public key towards other nodes, a certificate at its door.
//!
//! Owns the TLS settings of both. Refuses TLS below 1.3, keys that are not Ed25519, and, when
//! dialling, any node but the one that was asked for. Both faces carry the same key, so a node is
//! known by its id whichever way it is reached.

use std::sync::Arc;

use copse_core::ids::NodeId;
use copse_proto::tls::{check_spki, node_id_of_server_name, node_id_of_spki, provider};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, ClientSessionMemoryCache, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        ring::{default_provider, sign::any_eddsa_type},
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
        UnixTime,
    },
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use zeroize::Zeroizing;

/// What nodes speak over QUIC. An incompatible change gets another name; a node may offer both.
pub const ALPN: &[u8] = b"copse/1";

/// What the door speaks: gRPC is HTTP/2.
const DOOR_ALPN: &[u8] = b"h2";

/// Peers whose TLS sessions are kept for resumption: as many as pooled connections.
const SESSIONS_MAX: usize = 512;

/// In front of the 32 bytes of an Ed25519 seed in PKCS #8 version 1 (RFC 8410 §7).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A node's key, ready for TLS.
pub struct NodeTls {
    id: NodeId,
    raw: Arc<CertifiedKey>,
    pkcs8: Zeroizing<Vec<u8>>,
}

/// Why TLS cannot be set up. None of these happens with a valid seed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The TLS library refuses the key or the settings.
    #[error("TLS refuses the node's key or settings")]
    Rustls(#[from] Error),
    /// The library that makes certificates refuses the key.
    #[error("no certificate can be made of the node's key")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library does not offer what QUIC's first packets need.
    #[error("the TLS library lacks the cipher that QUIC starts with")]
    NoInitialCipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// The key is not an Ed25519 key.
    #[error("the node's key is not an Ed25519 key")]
    NotEd25519,
}

/// The certificate of a node's door and its key, both in DER.
pub struct DoorCertificate {
    /// Self-signed, over the node's own key.
    pub certificate: CertificateDer<'static>,
    /// PKCS #8.
    pub key: PrivateKeyDer<'static>,
}

impl NodeTls {
    /// From the seed of the node's Ed25519 key.
    ///
    /// # Errors
    /// When the TLS library refuses the key.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, TlsError> {
        let mut pkcs8 = Zeroizing::new(Vec::with_capacity(PKCS8_PREFIX.len() + seed.len()));
        pkcs8.extend_from_slice(&PKCS8_PREFIX);
        pkcs8.extend_from_slice(seed);
        let signer = any_eddsa_type(&PrivatePkcs8KeyDer::from(&pkcs8[..]))?;
        let spki = signer.public_key().ok_or(TlsError::NotEd25519)?;
        let id = node_id_of_spki(spki.as_ref()).ok_or(TlsError::NotEd25519)?;
        let certificate = CertificateDer::from(spki.to_vec());
        Ok(Self { id, raw: Arc::new(CertifiedKey::new(vec![certificate], signer)), pkcs8 })
    }

    /// The node's id: its public key.
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// A key that only this node can derive, the same after a restart, see
    /// [`crate::peer::endpoint`].
    pub(crate) fn stateless_reset_key(&self) -> [u8; 32] {
        blake3::derive_key("copse quic stateless reset v1", &self.pkcs8[PKCS8_PREFIX.len()..])
    }

    /// For accepting peers over QUIC. Any node may connect; what it may do is decided by its id.
    ///
    /// # Errors
    /// When the TLS library refuses the settings.
    pub fn quic_server(&self) -> Result<QuicServerConfig, TlsError> {
        let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&self.raw));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(PeerVerifier))
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(QuicServerConfig::try_from(config)?)
    }

    /// For dialling peers over QUIC. Make it once: sessions resume only with the same verifier
    /// object, and so the expected id travels in the server name.
    ///
    /// # Errors
    /// When the TLS library refuses the settings.
    pub fn quic_client(&self) -> Result<QuicClientConfig, TlsError> {
        self.quic_client_for(ALPN)
    }

    pub(crate) fn quic_client_for(&self, alpn: &[u8]) -> Result<QuicClientConfig, TlsError> {
        let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&self.raw));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PeerVerifier))
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![alpn.to_vec()];
        // The name would tell everyone on the path which node is dialled.
        config.enable_sni = false;
        config.resumption =
            Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS_MAX)));
        Ok(QuicClientConfig::try_from(config)?)
    }

    /// A self-signed certificate over the node's key. It has no meaningful name or date: clients
    /// look at the key alone ([`copse_proto::tls::DoorVerifier`]).
    ///
    /// # Errors
    /// When no certificate can be made.
    pub fn door_certificate(&self) -> Result<DoorCertificate, TlsError> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.to_vec());
        let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)?;
        let name = copse_proto::tls::server_name(&self.id);
        let certificate = rcgen::CertificateParams::new(vec![name])?.self_signed(&key)?;
        Ok(DoorCertificate { certificate: certificate.der().clone(), key: der.into() })
    }

    /// For the gRPC listener when it terminates TLS itself: TLS 1.3, HTTP/2.
    ///
    /// # Errors
    /// When no certificate can be made or the TLS library refuses it.
    pub fn door_server(&self) -> Result<ServerConfig, TlsError> {
        let DoorCertificate { certificate, key } = self.door_certificate()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![DOOR_ALPN.to_vec()];
        Ok(config)
    }
}

/// The node at the other end of a QUIC connection.
pub fn peer_id(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_id_of_spki(chain.first()?)
}

/// Checks raw public keys (RFC 7250) on both sides. It has no state: one object serves all.
#[derive(Debug)]
struct PeerVerifier;

impl PeerVerifier {
    fn signature(
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
        let algorithms = default_provider().signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &spki, dss, &algorithms)
    }

    fn alone(intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        match intermediates {
            [] => Ok(()),
            _ => Err(CertificateError::BadEncoding.into()),
        }
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::alone(intermediates)?;
        let expected = node_id_of_server_name(&server_name.to_str())
            .ok_or(Error::InvalidCertificate(CertificateError::NotValidForName))?;
        check_spki(end_entity, expected)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::alone(intermediates)?;
        node_id_of_spki(end_entity).ok_or(Error::from(CertificateError::BadEncoding))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use copse_proto::tls::{DoorVerifier, WrongNode, server_name};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// A TLS handshake through memory, at the door of `node`, by a client that expects `expected`.
    async fn knock(node: &NodeTls, expected: NodeId) -> std::io::Result<()> {
        let (near, far) = tokio::io::duplex(64 << 10);
        let acceptor = TlsAcceptor::from(Arc::new(node.door_server().expect("a door")));
        let server = tokio::spawn(async move { acceptor.accept(far).await.map(drop) });
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(DoorVerifier::new(expected))
            .with_no_client_auth();
        let name = ServerName::try_from(server_name(&expected)).expect("a name");
        let client = TlsConnector::from(Arc::new(config)).connect(name, near).await.map(drop);
        let _ = server.await.expect("the server does not panic");
        client
    }

    #[tokio::test]
    async fn the_door_shows_the_nodes_own_key() {
        let node = NodeTls::from_seed(&[1; 32]).expect("a key");
        let other = NodeTls::from_seed(&[2; 32]).expect("a key");
        knock(&node, node.id()).await.expect("the right node");
        let error = knock(&node, other.id()).await.expect_err("the wrong node");
        let found = WrongNode::in_text(&error.to_string());
        assert_eq!(found, Some(WrongNode { expected: other.id(), answered: node.id() }), "{error}");
    }
}
