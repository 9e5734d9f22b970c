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

#[cfg(test)]
mod tests {
    const DOCUMENT: &str = include_str!("../../docs/protocol.md");

    /// The lines of the `.proto` text from one that starts so to the brace that ends it.
    fn block<'a>(proto: &'a str, starts: &str) -> Vec<&'a str> {
        let lines = proto.lines().map(str::trim).skip_while(|line| !line.starts_with(starts));
        lines
            .skip(1)
            .take_while(|line| *line != "}")
            .filter(|line| !line.starts_with("//"))
            .collect()
    }

    #[test]
    fn every_operation_between_nodes_is_in_the_document() {
        let proto = include_str!("../copse/peer/v1/peer.proto");
        // As in `copse.door.v1.GetRequest get_shard = 5;`.
        let types = |name: &str| -> Vec<&str> {
            let types = block(proto, name).into_iter().filter_map(|line| line.split(' ').next());
            types.filter_map(|name| name.rsplit('.').next()).collect()
        };
        let (asked, answers) = (types("oneof op {"), types("oneof outcome {"));
        assert_eq!((asked.len(), answers.len()), (11, 12), "one answer more: an error");
        for (asked, answer) in asked.iter().zip(&answers[1..]) {
            let row = DOCUMENT.lines().find(|line| line.starts_with(&format!("| `{asked}` |")));
            let row = row.unwrap_or_else(|| panic!("{asked} is not in docs/protocol.md"));
            assert!(row.contains(&format!("| `{answer}` |")), "{asked} is answered with {answer}");
        }
    }

    #[test]
    fn every_call_of_a_program_or_client_is_in_the_document() {
        let mut calls = 0;
        for proto in [
            include_str!("../copse/door/v1/door.proto"),
            include_str!("../copse/files/v1/files.proto"),
        ] {
            let mut service = "";
            for line in proto.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("service ") {
                    service = name.trim_end_matches(" {");
                } else if let Some((name, _)) =
                    line.strip_prefix("rpc ").and_then(|call| call.split_once('('))
                {
                    calls += 1;
                    let call = format!("`{service}.{name}`");
                    assert!(DOCUMENT.contains(&call), "{call} is not in docs/protocol.md");
                }
            }
        }
        assert_eq!(calls, 9);
    }
}
