//! How a rollout ends.

use anyhow::Result;
use davylamp_tests::shop::Options;

use crate::cluster::shared::world;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_version_is_promoted() -> Result<()> {
    let world = world("good-version").await?;
    let _shop = world.shop(Options::default()).await?;
    Ok(())
}
