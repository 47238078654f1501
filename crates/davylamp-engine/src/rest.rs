//! At rest and the first release: what is there when no run is on, and what begins one.

use davylamp_api::conditions::Reason;
use davylamp_api::status::{Attempt, Revision, ServiceNames, StateName, TrafficStatus};
use davylamp_api::{Instant, revision};

use crate::decision::Why;
use crate::explain;
use crate::observed::{Entrance, Role};
use crate::pass::{Pass, ROUTER_DEADLINE, later, run_name};
use crate::program::Program;

// The first release: nothing to compare with; health only.

pub(crate) fn first_release(pass: &mut Pass<'_>) -> bool {
    let Some(program) = pass.wanted().filter(|_| !pass.observed.meta.deleting) else { return false };
    take_as_stable(pass, program, 1);
    true
}

fn take_as_stable(pass: &mut Pass<'_>, program: &Program, number: i64) {
    pass.status.stable = Some(revision_of(program, number, 0, None));
    pass.status.latest = Some(Attempt { revision: number, hash: program.hash.clone(), ..Attempt::default() });
    let message = format!("first release: revision {number} is started; there is nothing to compare it with");
    pass.go(StateName::Scaling, Reason::FirstRelease, Some(program.progress_deadline), message);
}

fn revision_of(program: &Program, number: i64, attempt: i32, started_at: Option<Instant>) -> Revision {
    Revision {
        revision: number,
        hash: program.hash.clone(),
        hash_version: revision::HASH_VERSION,
        attempt,
        images: program.images.clone(),
        started_at,
        ..Revision::default()
    }
}

pub(crate) fn unproven(pass: &mut Pass<'_>) -> bool {
    if let Some(program) = pass.wanted().filter(|p| p.hash != pass.stable_hash()) {
        let number = pass.status.latest.as_ref().map_or(1, |l| l.revision).saturating_add(1);
        take_as_stable(pass, program, number);
        return true;
    }
    let (hash, size) = (pass.stable_hash(), pass.size());
    if pass.available(&hash) >= size {
        let now = pass.now;
        if let Some(stable) = &mut pass.status.stable {
            stable.started_at = Some(now);
        }
        pass.go(
            StateName::Healthy,
            Reason::Completed,
            None,
            format!("the first release is ready: {size} of {size} pods"),
        );
        return true;
    }
    if pass.state() == StateName::Scaling && pass.past_deadline() {
        let message = format!(
            "the first release is not ready: {} of {size} pods{}; it turns Healthy by itself when they are",
            pass.available(&hash),
            explain::trouble(pass, &hash)
        );
        pass.go(StateName::Degraded, Reason::ProgressDeadline, None, message);
        return true;
    }
    false
}

// At rest.

pub(crate) fn at_rest(pass: &mut Pass<'_>) -> bool {
    if !pass.proven() {
        return unproven(pass);
    }
    note_availability(pass);
    if pass.observed.meta.deleting {
        return false;
    }
    let Some(program) = pass.wanted() else { return false };
    if program.hash == pass.stable_hash() {
        if pass.state() == StateName::Degraded {
            pass.go(
                StateName::Healthy,
                Reason::AsExpected,
                None,
                "the spec is the stable revision".to_owned(),
            );
            return true;
        }
        return false;
    }
    if let Some(rejected) = pass.status.rejected.iter().find(|r| r.hash == program.hash) {
        let message = format!(
            "revision {} was rejected in run {} ({}): apply another template, or create a RolloutAction with the verb retry",
            program.hash, rejected.run, rejected.reason
        );
        if pass.state() == StateName::Healthy {
            pass.go(StateName::Degraded, Reason::Rejected, None, message);
            return true;
        }
        return false;
    }
    let latest = pass.status.latest.clone().unwrap_or_default();
    if let Some(at) = latest.not_before.filter(|_| latest.hash == program.hash)
        && !pass.reached(at, Why::Retry)
    {
        return false;
    }
    if ready_to_start(pass, program).is_err() {
        return false;
    }
    let (number, attempt) = next_attempt(pass, program);
    let name = run_name(&pass.observed.meta.name, number, attempt);
    if pass.observed.runs.get(&name) != Some(&program.hash) {
        return false;
    }
    start(pass, program, name, number, attempt);
    true
}

/// The number and the attempt of the next run; names that others took are passed over.
pub(crate) fn next_attempt(pass: &Pass<'_>, program: &Program) -> (i64, i32) {
    let latest = pass.status.latest.clone().unwrap_or_default();
    let (number, mut attempt) = if latest.hash == program.hash {
        (latest.revision, latest.attempt.saturating_add(1))
    } else {
        (latest.revision.saturating_add(1), 1)
    };
    for _ in &pass.observed.taken_runs {
        if pass.observed.taken_runs.contains(&run_name(&pass.observed.meta.name, number, attempt)) {
            attempt = attempt.saturating_add(1);
        }
    }
    (number, attempt)
}

/// A run needs both Services, and a source that it may ask.
pub(crate) fn ready_to_start(pass: &Pass<'_>, program: &Program) -> Result<(), (Reason, String)> {
    services_ready(pass, program)?;
    explain::source_usable(pass, &program.conduct)
}

pub(crate) fn services_ready(pass: &Pass<'_>, program: &Program) -> Result<(), (Reason, String)> {
    let user = &program.service;
    match pass.observed.entrance {
        Entrance::Missing => {
            return Err((
                Reason::ServiceNotFound,
                format!("Service {user} does not exist: create it; its ports are copied to ours"),
            ));
        }
        Entrance::WithoutPorts => {
            return Err((
                Reason::ServiceWithoutPorts,
                format!("Service {user} has no ports: add the ports of the pods"),
            ));
        }
        Entrance::Found => {}
    }
    for (role, name) in [(Role::Stable, &program.services.stable), (Role::Canary, &program.services.canary)] {
        match pass.observed.services.get(&role) {
            Some(service) if service.foreign => {
                return Err((
                    Reason::ServiceTaken,
                    format!(
                        "Service {name} exists and is not ours: delete it, or set spec.services.{} to another name",
                        role.as_str()
                    ),
                ));
            }
            Some(service) if service.selects.is_some() => {}
            Some(_) | None => return Err((Reason::NoEndpoints, format!("Service {name} is being created"))),
        }
    }
    Ok(())
}

fn start(pass: &mut Pass<'_>, program: &Program, name: String, number: i64, attempt: i32) {
    let missed = pass.status.latest.as_ref().filter(|l| l.hash == program.hash).and_then(|l| l.missed);
    pass.status.size_at_start = Some(pass.size());
    pass.status.canary = Some(revision_of(program, number, attempt, Some(pass.now)));
    pass.status.latest =
        Some(Attempt { revision: number, hash: program.hash.clone(), attempt, missed, not_before: None });
    pass.status.services = Some(ServiceNames::clone(&program.services));
    pass.status.run = Some(name);
    pass.status.step = None;
    pass.status.plan = None;
    pass.status.analysis = None;
    pass.status.conflicts = None;
    pass.status.capacity_low_since = None;
    pass.status.incident = None;
    pass.status.held = None;
    pass.status.incidents_after = None;
    // The next pass reads what this run promised.
    pass.conduct = None;
    pass.status.traffic = Some(TrafficStatus::default());
    let (old, new) = (pass.status.stable.as_ref().map_or(0, |s| s.revision), number);
    let message =
        format!("revision {new} is released beside {old}, attempt {attempt}: routes go to 100/0 first");
    pass.go(
        StateName::Preparing,
        Reason::NewRevision,
        Some(ROUTER_DEADLINE.max(program.progress_deadline)),
        message,
    );
}

/// The stable revision has too few pods: since when.
fn note_availability(pass: &mut Pass<'_>) {
    if pass.available(&pass.stable_hash()) >= pass.size() {
        pass.status.capacity_low_since = None;
        return;
    }
    let now = pass.now;
    let since = *pass.status.capacity_low_since.get_or_insert(now);
    pass.reached(later(since, pass.progress_deadline()), Why::Deadline);
}

/// A state of a run without its canary: nothing is released, so it is at rest, once the routes are the user's again.
pub(crate) fn without_canary(pass: &mut Pass<'_>) -> bool {
    if pass.status.traffic.as_ref().is_some_and(|t| !t.originals.is_empty()) {
        crate::states::roll_back(
            pass,
            Reason::RunLost,
            "the run has no revision: all traffic goes back".to_owned(),
        );
    } else {
        pass.go(StateName::Healthy, Reason::AsExpected, None, "no run is on".to_owned());
    }
    true
}
