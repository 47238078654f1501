//! A real API server and the one in memory answer the same script alike.

use anyhow::{Result, ensure};
use davylamp_tests::conformance::answers;

use super::shared::alone;
use crate::conformance::in_memory;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_in_memory_answers_as_a_real_one() -> Result<()> {
    let mut world = alone("conformance").await?;
    // It would write to the Rollouts of the script.
    world.stop_controller().await?;
    let (real, ours) = (answers(&world.client, &world.namespace).await, in_memory().await?);
    world.start_controller().await?;
    let real = real?;
    let differ: Vec<String> = real
        .iter()
        .zip(&ours)
        .filter(|(real, ours)| real != ours)
        .map(|(real, ours)| format!("{}\n  a real one: {}\n  in memory:  {}", real.0, real.1, ours.1))
        .collect();
    ensure!(differ.is_empty() && real.len() == ours.len(), "{}", differ.join("\n"));
    Ok(())
}
