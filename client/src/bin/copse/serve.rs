//! `copse serve`: a tree for other programs.
//!
//! Thin: reads the token, opens the tree, says where it listens, and turns signals into a stop. What
//! is served, and to whom, is `copse_client::serve`'s business.

use std::{path::Path, process::ExitCode};

use copse_client::{
    get::Downloader,
    serve::{Address, Gateway, GatewayOptions, ListenError, Listener, Token},
    tree_read::TreeReader,
};
use copse_core::tree::Kind;

use crate::{
    exit::{CliError, USAGE},
    given::Given,
    session::Session,
    stop::Stop,
};

pub(crate) async fn serve(
    session: &Session,
    given: &Given,
    grpc: &str,
    token_file: Option<&Path>,
) -> Result<ExitCode, CliError> {
    // From here on a signal means a stop in good order, also while the tree is being opened.
    let mut stop = Stop::new()?;
    let address: Address = grpc.parse().map_err(|error: String| CliError::new(USAGE, error))?;
    let token = token_file.map(Token::read).transpose().map_err(CliError::other)?;
    let (root, below) = session.capability(given)?;
    // Bound before the network is asked: a place that is taken is told at once.
    let listener = Listener::bind(&address, token.is_some()).await?;
    let open = async {
        let (profile, network) = session.connect().await?;
        let tree = TreeReader::new(Downloader::new(network), &root)?;
        let unread = CliError::reading(&below);
        let (secret, options) = (profile.secret().clone(), GatewayOptions::default());
        Gateway::open(tree, below, secret, options).await.map_err(unread)
    };
    let gateway = tokio::select! {
        opened = open => opened?,
        () = stop.asked() => return Ok(ExitCode::SUCCESS),
    };

    let name = &gateway.entry().name;
    let name = if name.is_unnamed() { "/".to_owned() } else { name.to_string() };
    let kind = match gateway.entry().kind {
        Kind::File { .. } => "file",
        Kind::Directory { .. } => "folder",
        Kind::Symlink { .. } => "link",
    };
    session.say(format!("serving the {kind} {name} on {}", listener.address()));
    if let (Address::Tcp(_), None) = (listener.address(), &token) {
        session.say(
            "note: every user of this machine can read it and put with it; with --grpc unix:PATH only you \
             can, with --token-file who has the token",
        );
    }
    if let (Address::Tcp(address), Some(_)) = (listener.address(), &token)
        && !address.ip().to_canonical().is_loopback()
    {
        session.say(
            "warning: what passes on this address is not encrypted, the token neither; put a TLS \
             proxy or a tunnel in front of it",
        );
    }
    let asked = async {
        stop.asked().await;
        session.say("stopping: running calls have ten seconds to end");
        // The next one does not wait.
        tokio::spawn(async move {
            stop.asked().await;
            std::process::exit(crate::exit::INTERRUPTED.into());
        });
    };
    gateway.serve(listener, token, asked).await.map_err(CliError::other)?;
    Ok(ExitCode::SUCCESS)
}

impl From<ListenError> for CliError {
    fn from(error: ListenError) -> Self {
        match error {
            ListenError::Open(_) => Self::new(USAGE, error),
            error => Self::other(error),
        }
    }
}
