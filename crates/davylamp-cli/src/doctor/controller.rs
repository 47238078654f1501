//! Whether a controller is at work: whether it renews its Lease. Takes what was seen of that, gives a finding.

use super::cluster::{Answer, Sighting, Unread, WATCHED};
use super::finding::{Check, Finding};

pub(super) fn finding(lease: &Answer<Sighting>, namespace: &str, name: &str) -> Finding {
    let check = Check::Controller;
    let lease_name = format!("Lease {name} in namespace {namespace}");
    let sighting = match lease {
        Ok(sighting) => sighting,
        Err(Unread::Missing) => {
            let seen = format!("no {lease_name}: no controller has been at work here");
            let next = "start one; or say where its Lease is, with --controller-namespace and --lease";
            let start = format!("davylamp-controller run --namespace {namespace} --lease {name}");
            return Finding::problem(check, seen, next).with_command(start);
        }
        Err(why @ (Unread::Forbidden | Unread::Failed(_))) => {
            return Finding::unread(check, &format!("get {lease_name}"), why);
        }
    };
    let Sighting { spec, renewed } = sighting;
    let at = spec.renew_time.as_ref().map(|time| time.0);
    let at = at.and_then(|time| davylamp_api::Instant::from_second(time.as_second()).ok());
    let at = at.map(|time| format!(", last at {time}")).unwrap_or_default();
    match spec.holder_identity.as_deref().filter(|holder| !holder.is_empty()) {
        None => {
            let seen = format!("the last one has ended and gave its {lease_name} back{at}");
            Finding::problem(check, seen, "start one: until then nothing goes on")
        }
        Some(holder) if *renewed => Finding::ok(check, format!("{holder} is at work, and renews its Lease")),
        Some(holder) => {
            let seconds = WATCHED.as_secs();
            let seen = format!("{holder} holds {lease_name}, but did not renew it for {seconds}s{at}");
            let next =
                "it has ended, or cannot reach the API server: look whether it runs, and what its log says";
            Finding::problem(check, seen, next)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    fn seen(spec: serde_json::Value, renewed: bool) -> Finding {
        let sighting = Sighting { spec: serde_json::from_value(spec).unwrap(), renewed };
        finding(&Ok(sighting), "davylamp-system", "davylamp-controller")
    }

    #[test]
    fn who_renews_is_at_work_whatever_the_time_in_the_lease() {
        let spec = json!({"holderIdentity": "a_7_1", "renewTime": "1999-01-01T00:00:00.000000Z"});
        let at_work = seen(spec.clone(), true);
        assert_eq!(
            (at_work.level, at_work.seen.as_str()),
            (Level::Ok, "a_7_1 is at work, and renews its Lease")
        );
        let silent = seen(spec, false);
        assert_eq!(silent.level, Level::Problem);
        assert!(
            silent.seen.ends_with("did not renew it for 6s, last at 1999-01-01T00:00:00Z"),
            "{}",
            silent.seen
        );
    }

    #[test]
    fn a_lease_that_nobody_holds_is_a_problem() {
        let released = seen(json!({"holderIdentity": ""}), true);
        assert_eq!(released.level, Level::Problem);
        assert!(released.seen.contains("gave its Lease davylamp-controller"), "{}", released.seen);
        let missing = finding(&Err(Unread::Missing), "ours", "lamp");
        assert_eq!(missing.level, Level::Problem);
        assert_eq!(missing.command.as_deref(), Some("davylamp-controller run --namespace ours --lease lamp"));
        assert_eq!(finding(&Err(Unread::Forbidden), "ours", "lamp").level, Level::LeftOut);
    }
}
