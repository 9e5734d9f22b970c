//! The product's gateway, in the process of a client, and the program that calls it.
//!
//! Owns one gateway with one connection to it, the calls, and what may be answered: what was put, or an
//! error that can be true. Knows no ledger. The one idea: whoever asks rightly of what was promised is told
//! that something is out of reach, or busy; any other refusal is as wrong as other bytes.

use std::{io, ops::Range};

use copse_client::{
    serve::{Gateway, GatewayOptions, ServeError},
    tree_read::TreeReader,
};
use copse_core::{
    geometry::Geometry,
    seal::ConvergenceSecret,
    tree::{Meta, Name, path},
};
use copse_proto::{
    files::{
        Entry, Kind, ListRequest, PutFile, PutRequest, PutResponse, ReadRequest, StatRequest,
        files_client::FilesClient, put_request::Part,
    },
    status::{Reason, Refusal},
};
use futures::stream;
use hyper_util::rt::TokioIo;
use tokio::{sync::oneshot, task::JoinSet};
use tonic::{
    IntoStreamingRequest as _, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::{
    folder::Unread,
    made::CHUNK_BYTES,
    tree::{Item, Tree, What},
};

/// Bytes on their way in each direction, at most.
const WINDOW_BYTES: usize = 64 << 10;

/// Bytes of one message of a put: some more than a chunk holds, some less.
const MESSAGE_BYTES: usize = 40_000;

/// Mode of directories that are made around files.
const AROUND_MODE: u32 = 0o755;

/// What calls are named by: the gateway's own names have the number of the process in them.
const REQUEST_ID: &str = "sim";

/// A gateway that runs, and a connection to it. Dies when dropped.
pub(super) struct Served {
    files: FilesClient<Channel>,
    stop: oneshot::Sender<()>,
    running: JoinSet<Result<(), ServeError>>,
}

impl Served {
    /// Serves a tree, and stores with this code.
    pub(super) async fn start(
        tree: TreeReader,
        code: Geometry,
        secret: ConvergenceSecret,
    ) -> Result<Self, String> {
        let options = GatewayOptions { geometry: Some(code), chunk_bytes_max: Some(CHUNK_BYTES) };
        let gateway = Gateway::open(tree, Vec::new(), secret, options).await;
        let gateway = gateway.map_err(|error| error.to_string())?;
        let (near, far) = tokio::io::duplex(WINDOW_BYTES);
        let callers = stream::iter([Ok::<_, io::Error>(far)]);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            // Dropped or sent: both are a stop.
            let _ = stopped.await;
        };
        let mut running = JoinSet::new();
        running.spawn(gateway.serve_callers(callers, None, stopped));
        let mut near = Some(near);
        let connect = tower::service_fn(move |_| {
            let near = near.take();
            async move { near.map(TokioIo::new).ok_or(io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_static("http://gateway.invalid");
        let channel = endpoint.connect_with_connector(connect).await;
        let files = FilesClient::new(channel.map_err(|error| error.to_string())?);
        Ok(Self { files, stop, running })
    }

    /// Stops it in good order: it ends when no call runs any more.
    pub(super) async fn stop(self) -> Result<(), String> {
        let Self { files, stop, mut running } = self;
        drop(files);
        let _ = stop.send(());
        match running.join_next().await {
            Some(Ok(ended)) => ended.map_err(|error| error.to_string()),
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(()),
        }
    }

    /// Whether something is described as it was put.
    pub(super) async fn stat(&self, item: &Item) -> Result<(), Unread> {
        let (path, path_bytes) = spelled(&item.path);
        let request = named(StatRequest { path, path_bytes });
        let answer = self.files.clone().stat(request).await.map_err(|status| judged(&status))?;
        let entry = answer.into_inner().entry.unwrap_or_default();
        is(item, &entry).map_err(Unread::Wrong)
    }

    /// Whether all that begins so is listed, and nothing else.
    pub(super) async fn list(&self, tree: &Tree, prefix: &str) -> Result<(), Unread> {
        let request =
            ListRequest { recursive: true, prefix: prefix.to_owned(), ..Default::default() };
        let answer = self.files.clone().list(named(request)).await;
        let mut answer = answer.map_err(|status| judged(&status))?.into_inner();
        let begins = |item: &&Item| joined(&item.path).starts_with(prefix.as_bytes());
        let mut put = tree.items.iter().skip(1).filter(begins);
        while let Some(some) = answer.message().await.map_err(|status| judged(&status))? {
            for entry in some.entries {
                let item = put.next().ok_or_else(|| {
                    Unread::Wrong(format!("{:?} is listed, and was never put", entry.path))
                })?;
                is(item, &entry).map_err(Unread::Wrong)?;
            }
        }
        match put.next() {
            None => Ok(()),
            Some(item) => {
                let shown = path::display(&item.path);
                Err(Unread::Wrong(format!("the gateway does not list {shown:?}")))
            }
        }
    }

    /// Reads a range. What came before an error is there, too.
    pub(super) async fn read(
        &self,
        item: &Item,
        range: &Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), Unread> {
        let (path, path_bytes) = spelled(&item.path);
        let (offset, length) = (range.start as u64, range.len() as u64);
        let request = named(ReadRequest { path, path_bytes, offset, length });
        let answer = self.files.clone().read(request).await;
        let mut answer = answer.map_err(|status| judged(&status))?.into_inner();
        while let Some(some) = answer.message().await.map_err(|status| judged(&status))? {
            let at = offset + bytes.len() as u64;
            if some.offset != at {
                let wrong = format!("the bytes at {} come where those at {at} do", some.offset);
                return Err(Unread::Wrong(wrong));
            }
            bytes.extend_from_slice(&some.data);
        }
        Ok(())
    }

    /// Puts the files of a tree.
    pub(super) async fn put(&self, tree: &Tree) -> Result<PutResponse, Unread> {
        let mut parts = Vec::new();
        for item in tree.items.iter().filter(|item| matches!(item.what, What::File(_))) {
            let lone = [tree.name.clone()];
            let names = if item.path.is_empty() { &lone[..] } else { &item.path[..] };
            let (path, path_bytes) = spelled(names);
            let Meta { mode, modified, .. } = &item.meta;
            let (mtime_seconds, mtime_nanos) = (modified.seconds(), modified.nanoseconds());
            let file = PutFile { path, path_bytes, mode: *mode, mtime_seconds, mtime_nanos };
            parts.push(Part::File(file));
            let content = item.content();
            parts
                .extend(content.chunks(MESSAGE_BYTES).map(|data| Part::Data(data.to_vec().into())));
        }
        let requests = parts.into_iter().map(|part| PutRequest { part: Some(part) });
        let mut request = stream::iter(requests).into_streaming_request();
        name(&mut request);
        let answer = self.files.clone().put(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| judged(&status))
    }
}

/// What the gateway makes of the files of a tree, if there are any: links and empty directories cannot be
/// sent, and the directories around files are as old as the newest of them.
pub(super) fn sent(tree: Tree) -> Option<Tree> {
    let mut files: Vec<Item> =
        tree.items.into_iter().filter(|item| matches!(item.what, What::File(_))).collect();
    let newest = files.iter().map(|item| item.meta.modified).max()?;
    for file in &mut files {
        // 0 stands for the usual mode.
        file.meta.mode = file.meta.mode.max(0o001);
    }
    if let [file] = &mut files[..]
        && file.path.len() <= 1
    {
        let name = file.path.pop().unwrap_or(tree.name);
        return Some(Tree { name, items: files });
    }
    let around = |path: Vec<Name>| Item {
        path,
        meta: Meta::new(AROUND_MODE, newest),
        what: What::Directory,
    };
    let mut items: Vec<Item> = files
        .iter()
        .flat_map(|file| (0..file.path.len()).map(|end| around(file.path[..end].to_vec())))
        .collect();
    items.append(&mut files);
    items.sort_by(|one, other| one.path.cmp(&other.path));
    items.dedup_by(|one, other| one.path == other.path);
    Some(Tree { name: Name::UNNAMED, items })
}

/// What an error says, if it can be true.
fn judged(status: &Status) -> Unread {
    let reason = Refusal::from(status).reason();
    let said = format!("the gateway says {reason}, {:?}: {}", status.code(), status.message());
    match reason {
        Reason::NodeUnreachable
        | Reason::TooFewShards
        | Reason::TooFewNodes
        | Reason::StoreFull
        | Reason::Overloaded
        | Reason::TimedOut
        | Reason::ShuttingDown => Unread::Failed(said),
        _ => Unread::Wrong(said),
    }
}

fn named<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    name(&mut request);
    request
}

fn name<T>(request: &mut Request<T>) {
    request.metadata_mut().insert("x-request-id", MetadataValue::from_static(REQUEST_ID));
}

/// A path as bytes, slashes between the names.
fn joined(names: &[Name]) -> Vec<u8> {
    names.iter().map(Name::as_bytes).collect::<Vec<_>>().join(&b'/')
}

/// A path in the one of the two fields that it belongs in.
fn spelled(names: &[Name]) -> (String, Vec<u8>) {
    match String::from_utf8(joined(names)) {
        Ok(path) => (path, Vec::new()),
        Err(error) => (String::new(), error.into_bytes()),
    }
}

/// Whether an entry is what was put as this item.
fn is(item: &Item, entry: &Entry) -> Result<(), String> {
    let (kind, size, target) = match &item.what {
        What::Directory => (Kind::Directory, 0, &[][..]),
        What::Link(target) => (Kind::Symlink, target.len(), &target[..]),
        What::File(_) => (Kind::File, item.bytes(), &[][..]),
    };
    let path = joined(&item.path);
    let is_path = match std::str::from_utf8(&path) {
        Ok(text) => entry.path == text && entry.path_bytes.is_empty(),
        Err(_) => entry.path_bytes == path,
    };
    let modified = (entry.mtime_seconds, entry.mtime_nanos);
    let is = is_path
        && (entry.kind(), entry.size, &entry.symlink_target[..]) == (kind, size as u64, target)
        && entry.mode == item.meta.mode
        && modified == (item.meta.modified.seconds(), item.meta.modified.nanoseconds());
    let shown = path::display(&item.path);
    if is { Ok(()) } else { Err(format!("the gateway says that {shown:?} is {entry:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_makes_a_tree_of_files_with_the_directories_around_them() {
        let (mut lone, mut nested, mut none) = (0, 0, 0);
        for number in 0..200 {
            let whole = Tree::of(number);
            let (files, ..) = whole.counts();
            let Some(tree) = sent(whole) else {
                assert_eq!(files, 0);
                none += 1;
                continue;
            };
            assert!(tree.items.is_sorted_by_key(|item| item.path.clone()));
            assert_eq!(tree.counts().0, files);
            assert!(tree.items.iter().all(|item| !matches!(item.what, What::Link(_))));
            for item in &tree.items {
                let is_in = |above: &Item| {
                    above.path == item.path[..item.path.len() - 1] && above.what == What::Directory
                };
                assert!(item.path.is_empty() || tree.items.iter().any(is_in), "{:?}", item.path);
            }
            lone += u32::from(tree.items[0].what != What::Directory);
            nested += u32::from(tree.items.iter().any(|item| item.path.len() > 1));
        }
        assert!(lone > 10 && nested > 10 && none > 5, "{lone} {nested} {none}");
    }

    #[test]
    fn of_what_was_promised_only_some_errors_can_be_true() {
        let status = |reason: Reason| Status::from(Refusal::new(reason, "why"));
        let is_wrong = |reason| matches!(judged(&status(reason)), Unread::Wrong(_));
        for reason in [Reason::NodeUnreachable, Reason::TooFewShards, Reason::Overloaded] {
            assert!(!is_wrong(reason), "{reason:?}");
        }
        for reason in
            [Reason::NoSuchEntry, Reason::TreeDamaged, Reason::OutOfRange, Reason::Internal]
        {
            assert!(is_wrong(reason), "{reason:?}");
        }
    }
}
