//! What a Rollout goes through, told as histories.
mod world;

use davylamp_api::status::StateName;
use world::{World, hash, spec, step};

#[test]
fn a_good_canary_is_promoted_step_by_step() {
    let mut world = World::settled(spec(&[step("5%"), step("25%"), step("50%")], true));
    world.release(2);
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    println!("{}", world.trace.join(" > "));
    for r in &world.records {
        println!("{} {} {} {}", r.at, r.to, r.weight, r.message);
    }
    assert_eq!(world.status.stable.as_ref().unwrap().hash, hash(2));
    println!("passes {}", world.passes);
}
