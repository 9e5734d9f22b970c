//! What every command starts from: the client's state directory and the network it has joined.

use std::{path::PathBuf, sync::Once};

use copse_client::{network::Network, profile::Profile};
use copse_core::{
    capability::{Capability, CapabilityError, OtherNetworkError, VerifyCapability},
    text::TextError,
    tree::{Name, path},
};
use data_encoding::HEXLOWER;

use crate::{
    args::Global,
    exit::{BAD_CAPABILITY, CliError, USAGE},
    given::Given,
    output,
};

/// The global flags, and where the state is.
pub(crate) struct Session {
    pub(crate) global: Global,
    pub(crate) home: PathBuf,
}

impl Session {
    pub(crate) fn new(global: Global) -> Result<Self, CliError> {
        let home = global.home.clone().or_else(Profile::default_dir).ok_or_else(|| {
            CliError::new(USAGE, "there is no home directory; name one for copse with --home")
        })?;
        Ok(Self { global, home })
    }

    pub(crate) fn profile(&self) -> Result<Profile, CliError> {
        static WARNED: Once = Once::new();
        let profile = Profile::open(&self.home)?;
        if let Some(secret) = profile.open_secret() {
            let secret = secret.display();
            WARNED.call_once(|| {
                self.say(format_args!(
                    "warning: other users of this machine can get at this client's secret, and with it \
                     find out whether you have stored a file that they have; take that away: chmod 600 {secret}"
                ));
            });
        }
        Ok(profile)
    }

    pub(crate) async fn connect(&self) -> Result<(Profile, Network), CliError> {
        let profile = self.profile()?;
        let network = profile.connect().await?;
        Ok((profile, network))
    }

    /// A capability, with or without a path behind it, of this network.
    pub(crate) fn capability(&self, given: &Given) -> Result<(Capability, Vec<Name>), CliError> {
        let capability: Capability =
            given.text.parse().map_err(|error| no_capability(given, &error))?;
        let names = path::split(&given.below).map_err(|error| CliError::new(USAGE, error))?;
        let joined = self.profile()?.network();
        capability.check_network(joined).map_err(|other| self.other_network(&other))?;
        Ok((capability, names))
    }

    /// A verify capability of this network.
    pub(crate) fn verify_capability(&self, given: &Given) -> Result<VerifyCapability, CliError> {
        let capability: VerifyCapability =
            given.text.parse().map_err(|error| no_capability(given, &error))?;
        if given.below.iter().any(|byte| *byte != b'/') {
            return Err(CliError::new(
                USAGE,
                "a verify capability knows no names, so no path can follow it; for a folder alone \
                 whoever can read it makes another (copse verifier CAPABILITY/path)",
            ));
        }
        let joined = self.profile()?.network();
        capability.check_network(joined).map_err(|other| self.other_network(&other))?;
        Ok(capability)
    }

    fn other_network(&self, other: &OtherNetworkError) -> CliError {
        CliError::new(
            BAD_CAPABILITY,
            format!(
                "the capability is of network {}, and {} has joined network {}: name the state \
                 directory of that network with --home, or join it with a new one (copse --home \
                 DIR join TOKEN)",
                // As `short` writes it.
                HEXLOWER.encode(&other.found[..4]),
                self.home.display(),
                other.joined.short(),
            ),
        )
    }

    /// Says something that is not a result, unless asked to be quiet.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        if !self.global.quiet {
            output::tell(output::sentence(&text.to_string()));
        }
    }
}

/// Characters of a wrong argument that are shown.
const SHOWN_CHARS: usize = 32;

/// What has nothing of a capability is shown as it was given, up to the path behind it and on.
fn no_capability(given: &Given, error: &CapabilityError) -> CliError {
    let message = match error {
        CapabilityError::Text(TextError::Empty(_)) => {
            "the capability is empty: is it in a variable that is not set?".to_owned()
        }
        CapabilityError::Text(TextError::Prefix { .. }) => {
            let given = format!("{}{}", given.text, String::from_utf8_lossy(&given.below));
            let start: String = given.chars().take(SHOWN_CHARS).collect();
            let more = if start.len() < given.len() { "..." } else { "" };
            format!(
                "\"{}{more}\" is no capability: that is what `copse put` printed, and starts with \
                 copse1r",
                output::sentence(&start)
            )
        }
        error => error.to_string(),
    };
    CliError::new(BAD_CAPABILITY, message)
}
