//! What travels between processes: the messages generated from the `.proto` files, their conversion
//! from and to `copse-core` types, and the mapping of errors to gRPC codes and details.
//!
//! Sockets are opened elsewhere; nothing here does I/O.

pub mod bulk;
pub mod convert;
pub mod holdings;
pub mod routes;
pub mod status;
pub mod tls;

// Generated code is not ours to lint. Its modules follow the packages, since messages of one
// package name those of another by path.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
mod copse {
    pub mod door {
        pub mod v1 {
            tonic::include_proto!("copse.door.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("copse.peer.v1");
        }
    }
    pub mod files {
        pub mod v1 {
            tonic::include_proto!("copse.files.v1");
        }
    }
}

/// The door of a node: `copse.door.v1`.
pub use copse::door::v1 as door;
/// A tree of files for other programs: `copse.files.v1`.
pub use copse::files::v1 as files;
/// What nodes say to each other: `copse.peer.v1`.
pub use copse::peer::v1 as peer;

/// The descriptors of all services, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/copse.bin"));
