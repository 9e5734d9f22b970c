//! A node's Ed25519 key: who it is and what it signs.
//!
//! Owns signing and strict verification. Refuses to make keys up (the seed is an argument) and to
//! print them. Whoever signs puts a domain string in front of the message, so that bytes signed
//! for one purpose never pass for another.

use core::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::ids::NodeId;

/// Length in bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;

/// A node's secret key. Wiped from memory when dropped.
#[derive(Clone)]
pub struct NodeKey(SigningKey);

/// A signature that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The node id is no usable Ed25519 public key.
    #[error("node id {0} is no valid public key: refuse what it is said to have signed")]
    Key(NodeId),
    /// The signature belongs to another message or another key.
    #[error("the signature of node {0} does not fit: the bytes were altered or never signed by it")]
    Mismatch(NodeId),
    /// Not 64 bytes long.
    #[error("a signature has {SIGNATURE_BYTES} bytes, not {0}")]
    Length(usize),
}

impl NodeKey {
    /// The key of a secret seed: 32 bytes of good randomness, kept by the caller.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// The public key, which is the node's id.
    pub fn id(&self) -> NodeId {
        NodeId::new(self.0.verifying_key().to_bytes())
    }

    /// Signs a message. Deterministic (RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.id().short())
    }
}

/// Checks that `node` signed `message`.
///
/// Strict: weak keys and signatures with more than one spelling are refused, so that all nodes
/// agree on what is valid.
///
/// # Errors
/// When the id is no public key or the signature does not fit.
pub fn verify(
    node: NodeId,
    message: &[u8],
    signature: &[u8; SIGNATURE_BYTES],
) -> Result<(), SignatureError> {
    let key = VerifyingKey::from_bytes(node.as_bytes()).map_err(|_| SignatureError::Key(node))?;
    if key.is_weak() {
        return Err(SignatureError::Key(node));
    }
    key.verify_strict(message, &Signature::from_bytes(signature))
        .map_err(|_| SignatureError::Mismatch(node))
}

/// Takes a byte string for a signature.
///
/// # Errors
/// When it is not 64 bytes long.
pub fn signature_from_slice(bytes: &[u8]) -> Result<[u8; SIGNATURE_BYTES], SignatureError> {
    bytes.try_into().map_err(|_| SignatureError::Length(bytes.len()))
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_seed_gives_the_key_and_signature_of_rfc_8032() {
        // RFC 8032, section 7.1, test 1: the empty message.
        let seed = HEXLOWER
            .decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
            .expect("hexadecimal");
        let key = NodeKey::from_seed(seed.try_into().expect("32 bytes"));
        assert_eq!(
            key.id().to_string(),
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        );
        let signature = key.sign(b"");
        assert!(HEXLOWER.encode(&signature).starts_with("e5564300c360ac729086e2cc806e828a"));
        assert_eq!(verify(key.id(), b"", &signature), Ok(()));
    }

    #[test]
    fn a_weak_key_signs_nothing() {
        // The neutral element: with it, some signatures fit every message.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let id = NodeId::new(neutral);
        let mut signature = [0; SIGNATURE_BYTES];
        signature[0] = 1;
        assert_eq!(verify(id, b"anything", &signature), Err(SignatureError::Key(id)));
    }

    #[test]
    fn the_secret_is_not_printed() {
        let key = NodeKey::from_seed([7; 32]);
        assert_eq!(format!("{key:?}"), format!("NodeKey({})", key.id().short()));
    }

    proptest! {
        #[test]
        fn only_the_signed_bytes_verify(
            seed: [u8; 32],
            message in prop::collection::vec(any::<u8>(), 1..80),
            at: prop::sample::Index,
            flip in 1u8..,
        ) {
            let key = NodeKey::from_seed(seed);
            let signature = key.sign(&message);
            prop_assert_eq!(verify(key.id(), &message, &signature), Ok(()));
            let mut altered = message.clone();
            altered[at.index(message.len())] ^= flip;
            prop_assert!(verify(key.id(), &altered, &signature).is_err());
            let mut forged = signature;
            forged[at.index(SIGNATURE_BYTES)] ^= flip;
            prop_assert!(verify(key.id(), &message, &forged).is_err());
        }

        #[test]
        fn any_bytes_are_verified_without_a_panic(id: [u8; 32], half: [[u8; 32]; 2]) {
            let signature: [u8; 64] = half.concat().try_into().expect("64 bytes");
            prop_assert!(verify(NodeId::new(id), b"message", &signature).is_err());
        }
    }
}
