//! Who is at the other end of a TLS connection: a node, known by its Ed25519 public key.
//!
//! Owns the form of a node's key in TLS (its SubjectPublicKeyInfo), the server name made of its id,
//! and the verifier that a client uses at a node's door. Refuses every certificate but one whose
//! key is the expected id; who signed it, which names and which dates it bears do not matter.

use std::{error::Error as StdError, fmt, sync::Arc};

use copse_core::ids::{ID_BYTES, NodeId};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, Error, OtherError, PeerIncompatible,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring::default_provider},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

/// What stands before the 32 key bytes in the SubjectPublicKeyInfo of an Ed25519 key (RFC 8410 §4).
pub const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Bytes read from a socket at once, for TLS to work on: four records. rustls asks for 4 KiB at a time,
/// which is five system calls for each record of 16 KiB. Each connection holds so much all the time: a
/// door with all its 128 connections 8 MiB.
pub const READ_AHEAD_BYTES: usize = 64 << 10;

/// Bytes that TLS seals before it gives them to a socket, at most: a frame of HTTP/2 of 256 KiB goes out in
/// one system call. rustls stops at 64 KiB, which cuts such a frame into five. A peer that takes nothing
/// holds so much of each connection: a door with all its 128 connections 40 MiB.
pub const WRITE_AHEAD_BYTES: usize = 320 << 10;

/// Behind the base32 of the id in a server name. `invalid` never resolves (RFC 6761 §6.4).
const SERVER_NAME_SUFFIX: &str = ".x.invalid";

/// The ciphers of all connections. AES of 128 bits comes first: it takes ten rounds where 256 bits take
/// fourteen, and what it seals a second time was sealed by its owner before.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The node whose key a SubjectPublicKeyInfo holds; none for any other kind of key.
pub fn node_id_of_spki(spki: &[u8]) -> Option<NodeId> {
    NodeId::from_slice(spki.strip_prefix(&SPKI_PREFIX)?).ok()
}

/// The TLS server name of a node: `<base32 of its id>.x.invalid`. TLS libraries keep sessions for
/// resumption by this name; hexadecimal would be longer than a DNS label may be.
pub fn server_name(id: &NodeId) -> String {
    let mut name = BASE32_NOPAD.encode(id.as_bytes()).to_ascii_lowercase();
    name.push_str(SERVER_NAME_SUFFIX);
    name
}

/// The node that a server name stands for.
pub fn node_id_of_server_name(name: &str) -> Option<NodeId> {
    let label = name.strip_suffix(SERVER_NAME_SUFFIX)?;
    let bytes = BASE32_NOPAD.decode(label.to_ascii_uppercase().as_bytes()).ok()?;
    NodeId::from_slice(&bytes).ok()
}

/// Another node answers at the address where one was expected.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WrongNode {
    /// The node that was asked for.
    pub expected: NodeId,
    /// The node that answered.
    pub answered: NodeId,
}

const ANSWERED: &str = "another node answers: expected ";
const IT_IS: &str = ", it is ";

impl fmt::Display for WrongNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ANSWERED}{}{IT_IS}{}", self.expected, self.answered)
    }
}

// TLS libraries show the inner error by Debug.
impl fmt::Debug for WrongNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for WrongNode {}

impl WrongNode {
    /// Finds this error in the text of another: what QUIC and HTTP stacks keep of a failed
    /// handshake is its text.
    pub fn in_text(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once(ANSWERED)?;
        let expected = rest.get(..2 * ID_BYTES)?;
        let answered = rest.get(2 * ID_BYTES..)?.strip_prefix(IT_IS)?.get(..2 * ID_BYTES)?;
        let id = |hex: &str| NodeId::from_slice(&HEXLOWER.decode(hex.as_bytes()).ok()?).ok();
        Some(Self { expected: id(expected)?, answered: id(answered)? })
    }

    /// Finds this error among the causes of another.
    pub fn in_chain(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(found) = Self::in_text(&error.to_string()) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

impl From<WrongNode> for Error {
    fn from(error: WrongNode) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

/// Checks that a key of SubjectPublicKeyInfo form is the expected node's.
///
/// # Errors
/// [`CertificateError::BadEncoding`] when it is no Ed25519 key, [`WrongNode`] when it is another's.
pub fn check_spki(spki: &[u8], expected: NodeId) -> Result<(), Error> {
    match node_id_of_spki(spki) {
        None => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        Some(answered) if answered != expected => Err(WrongNode { expected, answered }.into()),
        Some(_) => Ok(()),
    }
}

/// Accepts at a node's door only an X.509 certificate over the node's own key.
///
/// Give it to `tonic`'s `Endpoint::tls_config_with_verifier`. The certificate is self-signed and
/// only carries the key: the handshake's signature is what proves possession of it, and that is
/// checked with TLS 1.3 and Ed25519 only.
#[derive(Debug)]
pub struct DoorVerifier {
    expected: NodeId,
}

impl DoorVerifier {
    /// A verifier for the door of one node.
    pub fn new(expected: NodeId) -> Arc<Self> {
        Arc::new(Self { expected })
    }
}

impl ServerCertVerifier for DoorVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        check_spki(certificate.subject_public_key_info().as_ref(), self.expected)?;
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
        let algorithms = default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

    use super::*;

    fn certificate(key: &KeyPair) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec!["x.invalid".to_owned()]).expect("a valid name");
        params.self_signed(key).expect("a certificate").der().clone()
    }

    fn verify(expected: NodeId, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let name = ServerName::try_from("x.invalid").expect("a name");
        let now = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        DoorVerifier::new(expected).verify_server_cert(certificate, &[], &name, &[], now).map(drop)
    }

    #[test]
    fn only_the_expected_nodes_key_passes_the_door() {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let id = NodeId::from_slice(key.public_key_raw()).expect("32 bytes");
        verify(id, &certificate(&key)).expect("the right node");

        let other = NodeId::new([9; 32]);
        let error = verify(other, &certificate(&key)).expect_err("the wrong node");
        assert_eq!(
            WrongNode::in_chain(&error),
            Some(WrongNode { expected: other, answered: id }),
            "{error}"
        );

        let elliptic = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        verify(id, &certificate(&elliptic)).expect_err("no Ed25519 key");
        verify(id, &CertificateDer::from(vec![0x30, 0x00])).expect_err("no certificate");
    }

    #[test]
    fn a_server_name_is_a_label_made_of_the_id() {
        let id = NodeId::new([0xab; 32]);
        let name = server_name(&id);
        assert_eq!(name, "vov2xk5lvov2xk5lvov2xk5lvov2xk5lvov2xk5lvov2xk5lvovq.x.invalid");
        assert!(ServerName::try_from(name.as_str()).is_ok());
        assert_eq!(node_id_of_server_name(&name), Some(id));
        for wrong in ["", "x.invalid", "a.x.invalid", "10.0.0.1", &name[1..]] {
            assert_eq!(node_id_of_server_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_key_has_one_form() {
        let id = NodeId::new([5; 32]);
        let spki = [&SPKI_PREFIX[..], id.as_bytes()].concat();
        assert_eq!(node_id_of_spki(&spki), Some(id));
        assert_eq!(node_id_of_spki(&spki[1..]), None);
        assert_eq!(node_id_of_spki(&[&spki[..], &[0]].concat()), None);
    }
}
