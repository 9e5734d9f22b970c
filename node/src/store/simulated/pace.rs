//! What a simulated disk takes for reads and writes, by tokio's clock.

use std::{future::Future, pin::Pin, sync::Arc};

use super::{
    super::driver::{Pace, Waits},
    medium::Medium,
};

/// The delays that a disk is told to have, for one process.
pub(super) struct DiskPace {
    pub(super) medium: Arc<Medium>,
    pub(super) life: u64,
}

impl Pace for DiskPace {
    fn wait(&self, what: Waits) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let delay = {
                let faults = &self.medium.state().faults;
                match what {
                    Waits::Life => None,
                    Waits::Read => Some(faults.read_delay),
                    Waits::Write => Some(faults.write_delay),
                    Waits::Sync => Some(faults.sync_delay),
                }
            };
            let passed = async {
                match delay {
                    None => std::future::pending().await,
                    Some(delay) if delay.is_zero() => {}
                    Some(delay) => tokio::time::sleep(delay).await,
                }
            };
            tokio::select! {
                biased;
                () = self.medium.has_ended(self.life) => {}
                () = passed => {}
            }
        })
    }
}
