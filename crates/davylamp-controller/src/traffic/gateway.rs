//! An `HTTPRoute` as JSON: what it says of our two Services, and its text with other numbers. Pure; any JSON is taken,
//! and what is not understood is left as it is.

use davylamp_api::labels::MANAGER_TRAFFIC;
use davylamp_api::rollout::RouteRef;
use davylamp_api::scalar::Percent;
use davylamp_api::status::{RouteOriginal, RuleWeights};
use davylamp_engine::observed::{Effective, Role, Route};
use serde_json::{Value, json};

use super::effective::{Parents, effective};

/// Our numbers in a rule add up to this: a weight is exact to 0.01 %.
const WHOLE: i32 = 10_000;

/// The two Services whose share of a route is driven.
#[derive(Clone, Copy, Debug)]
pub struct Backends<'a> {
    /// Their namespace, and the route's.
    pub namespace: &'a str,
    /// The Service of the stable version.
    pub stable: &'a str,
    /// The Service of the canary.
    pub canary: &'a str,
}

impl Backends<'_> {
    /// Which of the two a `backendRef` names.
    fn role(self, backend: &Value) -> Option<Role> {
        // Linkerd's own documentation writes the core group as "core".
        let service = matches!(text(backend, "group", ""), "" | "core")
            && text(backend, "kind", "Service") == "Service"
            && text(backend, "namespace", self.namespace) == self.namespace;
        match backend.get("name").and_then(Value::as_str) {
            Some(name) if service && name == self.stable => Some(Role::Stable),
            Some(name) if service && name == self.canary => Some(Role::Canary),
            _ => None,
        }
    }
}

/// What a route says, and whether its gateways carry it.
#[must_use]
pub fn observe(
    route: Option<&Value>,
    target: &RouteRef,
    backends: Backends<'_>,
    parents: &impl Parents,
) -> Route {
    let Some(route) = route else {
        return Route { effective: Effective::No("it does not exist".to_owned()), ..Route::default() };
    };
    Route {
        found: true,
        unsupported: unsupported(route, target, backends),
        rules: numbers(route, target.rule.as_deref(), backends),
        effective: effective(route, backends.namespace, parents),
        ours: forget_patch(route).is_some(),
        other_manager: other_manager(route),
    }
}

/// The route with this share for the canary and the rest for stable, in the target's rules that name both. None when
/// it says so already, or has no such rule. Other backends of a rule keep their numbers: no edit of a route in mid-run
/// can keep the canary from going to 0.
#[must_use]
pub fn with_weight(
    route: &Value,
    target: &RouteRef,
    backends: Backends<'_>,
    canary: Percent,
) -> Option<Value> {
    let canary = i32::from(canary.basis_points());
    let wanted: Vec<_> = numbers(route, target.rule.as_deref(), backends)
        .into_iter()
        .map(|now| RuleWeights { stable: Some(WHOLE - canary), canary: Some(canary), ..now })
        .collect();
    edited(route, backends, &wanted)
}

/// The route with the user's own numbers where ours stand; None when nothing is left to restore. Numbers that somebody
/// wrote over ours are the user's, and stay.
///
/// While as many rules name both Services as before the run, each gets its numbers back in order, so that rules of other
/// backends may have come and gone. Else the user's numbers of the same position, or none: ours never stay.
#[must_use]
pub fn restored(route: &Value, original: &RouteOriginal, backends: Backends<'_>) -> Option<Value> {
    let mut now = numbers(route, original.route.rule.as_deref(), backends);
    if now.is_empty() {
        // The rule may have lost its name in mid-run.
        now = numbers(route, None, backends);
        now.retain(ours);
    }
    let in_order = now.len() == original.rules.len();
    let users = |(order, now): (usize, &RuleWeights)| {
        let user = if in_order {
            original.rules.get(order)
        } else {
            original.rules.iter().find(|user| user.rule == now.rule)
        };
        RuleWeights { rule: now.rule, ..user.copied().unwrap_or_default() }
    };
    let wanted: Vec<_> = now.iter().enumerate().filter(|(_, now)| ours(now)).map(users).collect();
    edited(route, backends, &wanted)
}

/// The JSON patch that ends our ownership of fields, so that the user's next apply meets no conflict; None when we own
/// none. It fails when the route has changed since.
#[must_use]
pub fn forget_patch(route: &Value) -> Option<Value> {
    let entries = list(route, "/metadata/managedFields");
    let is_ours = |entry: &Value| text(entry, "manager", "") == MANAGER_TRAFFIC;
    let ours: Vec<_> = (0..entries.len()).rev().filter(|i| is_ours(&entries[*i])).collect();
    if ours.is_empty() {
        return None;
    }
    let mut patch = vec![json!({
        "op": "test",
        "path": "/metadata/resourceVersion",
        "value": route.pointer("/metadata/resourceVersion"),
    })];
    if ours.len() == entries.len() {
        // The API server takes an empty list as "unchanged", and a list of one empty entry as "none".
        patch.push(json!({"op": "replace", "path": "/metadata/managedFields", "value": [{}]}));
    } else {
        let remove = |i| json!({"op": "remove", "path": format!("/metadata/managedFields/{i}")});
        patch.extend(ours.into_iter().map(remove));
    }
    Some(Value::Array(patch))
}

/// The text at a key; the default when it is absent or no text.
pub(super) fn text<'a>(object: &'a Value, key: &str, default: &'a str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or(default)
}

/// The list at a pointer; empty when it is absent or no list.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The rules of this name, or all, with their positions.
fn rules<'a>(route: &'a Value, name: Option<&str>) -> impl Iterator<Item = (i32, &'a Value)> {
    let named = move |rule: &Value| name.is_none_or(|name| rule.get("name").is_some_and(|n| n == name));
    (0..).zip(list(route, "/spec/rules")).filter(move |(_, rule)| named(rule))
}

/// The numbers of the rules that name both Services.
fn numbers(route: &Value, name: Option<&str>, backends: Backends<'_>) -> Vec<RuleWeights> {
    rules(route, name)
        .filter_map(|(rule, value)| {
            let weight = |role| {
                let mut refs = list(value, "/backendRefs").iter();
                refs.find(|backend| backends.role(backend) == Some(role)).map(weight)
            };
            Some(RuleWeights { rule, stable: weight(Role::Stable)?, canary: weight(Role::Canary)? })
        })
        .collect()
}

fn weight(backend: &Value) -> Option<i32> {
    backend.get("weight").and_then(Value::as_i64).and_then(|weight| weight.try_into().ok())
}

fn ours(rule: &RuleWeights) -> bool {
    let whole = |(stable, canary): (i32, i32)| stable >= 0 && canary >= 0 && WHOLE - stable == canary;
    rule.stable.zip(rule.canary).is_some_and(whole)
}

/// The route with other numbers in these rules; None when they are there already.
fn edited(route: &Value, backends: Backends<'_>, wanted: &[RuleWeights]) -> Option<Value> {
    let mut next = route.clone();
    for rule in wanted {
        let refs = next.pointer_mut(&format!("/spec/rules/{}/backendRefs", rule.rule));
        let (mut stable, mut canary) = (rule.stable, rule.canary);
        for backend in refs.and_then(Value::as_array_mut).into_iter().flatten() {
            let number = match backends.role(backend) {
                Some(Role::Stable) => &mut stable,
                Some(Role::Canary) => &mut canary,
                None => continue,
            };
            let Some(fields) = backend.as_object_mut() else { continue };
            match *number {
                Some(number) => fields.insert("weight".to_owned(), number.into()),
                None => fields.remove("weight"),
            };
            // Named again in the same rule, a Service must not get its share twice.
            *number = number.map(|_| 0);
        }
    }
    (next != *route).then_some(next)
}

/// Why the target's rules cannot be driven, and what to write instead.
fn unsupported(route: &Value, target: &RouteRef, backends: Backends<'_>) -> Option<String> {
    let Backends { stable, canary, .. } = backends;
    if let Some(rule) = target.rule.as_deref().filter(|rule| rules(route, Some(rule)).next().is_none()) {
        return Some(format!(
            "it has no rule named {rule}: give the rule of {stable} and {canary} this name, or leave out `rule` to \
             drive each rule that names both"
        ));
    }
    let (mut driven, mut lone) = (false, None);
    for (index, rule) in rules(route, target.rule.as_deref()) {
        let refs = list(rule, "/backendRefs");
        let count = |role| refs.iter().filter(|backend| backends.role(backend) == Some(role)).count();
        match (count(Role::Stable), count(Role::Canary)) {
            (0, 0) => {}
            (_, 0) => lone = lone.or(Some((index, stable, canary))),
            (0, _) => lone = lone.or(Some((index, canary, stable))),
            (1, 1) if refs.len() == 2 => driven = true,
            (1, 1) => {
                let others = refs.iter().filter(|backend| backends.role(backend).is_none());
                let others: Vec<_> = others.map(|backend| text(backend, "name", "?")).collect();
                return Some(format!(
                    "spec.rules[{index}] has other backends beside {stable} and {canary}: remove {}, or give them a \
                     rule of their own",
                    others.join(", ")
                ));
            }
            (several, _) => {
                let twice = if several > 1 { stable } else { canary };
                return Some(format!(
                    "spec.rules[{index}] names {twice} more than once: keep one backendRef of it"
                ));
            }
        }
    }
    match lone {
        _ if driven => None,
        Some((index, has, lacks)) => Some(format!(
            "spec.rules[{index}] names {has} without {lacks}: add a backendRef of {lacks} with the same port"
        )),
        None => Some(format!(
            "no rule names {stable} and {canary}: write both Services as backendRefs of one rule"
        )),
    }
}

/// The manager, other than we, who last wrote the rules, or else another part of the spec.
fn other_manager(route: &Value) -> Option<String> {
    let foreign = |entry: &&Value| {
        entry.pointer("/fieldsV1/f:spec").is_some()
            && text(entry, "subresource", "").is_empty()
            && text(entry, "manager", MANAGER_TRAFFIC) != MANAGER_TRAFFIC
    };
    // RFC 3339 in UTC, whole seconds: the order of the text is that of the time.
    let rank = |entry: &&Value| {
        (entry.pointer("/fieldsV1/f:spec/f:rules").is_some(), text(entry, "time", "").to_owned())
    };
    let newest = list(route, "/metadata/managedFields").iter().filter(foreign).max_by_key(rank)?;
    Some(text(newest, "manager", "").to_owned())
}

#[cfg(test)]
mod tests {
    use davylamp_api::rollout::RouteKind;
    use proptest::prelude::*;

    use super::*;

    struct NoGateways;

    impl Parents for NoGateways {
        fn controller_name(&self, _: &str, _: &str) -> Option<String> {
            None
        }
    }

    const BACKENDS: Backends<'_> =
        Backends { namespace: "shop", stable: "shop-stable", canary: "shop-canary" };

    fn target(rule: Option<&str>) -> RouteRef {
        RouteRef { kind: RouteKind::HttpRoute, name: "shop".to_owned(), rule: rule.map(str::to_owned) }
    }

    fn seen(route: &Value, rule: Option<&str>) -> Route {
        observe(Some(route), &target(rule), BACKENDS, &NoGateways)
    }

    fn original(route: &Value, rule: Option<&str>) -> RouteOriginal {
        RouteOriginal { route: target(rule), rules: seen(route, rule).rules }
    }

    fn percent(bp: u16) -> Percent {
        Percent::from_basis_points(bp)
    }

    fn shifted(route: &Value, rule: Option<&str>, bp: u16) -> Value {
        with_weight(route, &target(rule), BACKENDS, percent(bp)).unwrap()
    }

    fn route(rules: &Value) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "shop", "namespace": "shop", "resourceVersion": "7", "generation": 1},
            "spec": {"parentRefs": [{"name": "edge"}], "rules": rules},
        })
    }

    fn backend(name: &str, weight: Option<i32>) -> Value {
        match weight {
            Some(weight) => json!({"name": name, "port": 80, "weight": weight}),
            None => json!({"name": name, "port": 80}),
        }
    }

    fn both(stable: Option<i32>, canary: Option<i32>) -> Value {
        json!({"backendRefs": [backend("shop-stable", stable), backend("shop-canary", canary)]})
    }

    fn weights(rule: i32, stable: Option<i32>, canary: Option<i32>) -> RuleWeights {
        RuleWeights { rule, stable, canary }
    }

    #[test]
    fn a_route_that_is_not_there_is_not_found() {
        let seen = observe(None, &target(None), BACKENDS, &NoGateways);
        assert!(!seen.found);
        assert_eq!(seen.effective, Effective::No("it does not exist".to_owned()));
    }

    #[test]
    fn rules_that_name_both_are_seen_with_their_numbers() {
        let other = json!({"backendRefs": [backend("legacy", Some(1))]});
        let route = route(&json!([both(None, Some(0)), other, both(Some(90), Some(10))]));
        let seen = seen(&route, None);
        assert!(seen.found);
        assert_eq!(seen.unsupported, None);
        assert_eq!(seen.rules, [weights(0, None, Some(0)), weights(2, Some(90), Some(10))]);
    }

    #[test]
    fn group_kind_and_namespace_of_a_backend_count() {
        let named = |fields: Value| {
            let mut canary = backend("shop-canary", None);
            canary.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            !seen(&route(&json!([{"backendRefs": [backend("shop-stable", None), canary]}])), None)
                .rules
                .is_empty()
        };
        assert!(named(json!({"group": "", "kind": "Service", "namespace": "shop"})));
        assert!(named(json!({"group": "core"})));
        assert!(!named(json!({"namespace": "other"})));
        assert!(!named(json!({"group": "multicluster.x-k8s.io", "kind": "ServiceImport"})));
    }

    #[test]
    fn what_cannot_be_driven_is_named_with_what_to_write() {
        let lone = |name: &str| json!({"backendRefs": [backend(name, None)]});
        let with = |name: &str| {
            let mut rule = both(None, None);
            rule["backendRefs"].as_array_mut().unwrap().push(backend(name, None));
            rule
        };
        for (rules, expected) in [
            (json!([both(None, None), lone("shop-stable")]), None),
            (json!([lone("legacy")]), Some("no rule names shop-stable and shop-canary: write both")),
            (json!([lone("shop-stable")]), Some("spec.rules[0] names shop-stable without shop-canary: add")),
            (
                json!([lone("legacy"), lone("shop-canary")]),
                Some("spec.rules[1] names shop-canary without shop-st"),
            ),
            (
                json!([with("legacy")]),
                Some("spec.rules[0] has other backends beside shop-stable and shop-canary: remove legacy"),
            ),
            (json!([with("shop-stable")]), Some("spec.rules[0] names shop-stable more than once")),
            (json!([with("shop-canary")]), Some("spec.rules[0] names shop-canary more than once")),
        ] {
            let route = route(&rules);
            match (seen(&route, None).unsupported, expected) {
                (None, None) => {}
                (Some(why), Some(expected)) if why.starts_with(expected) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_named_rule_is_the_only_one_that_is_driven() {
        let mut named = both(Some(3), Some(1));
        named["name"] = json!("checkout");
        let before = route(&json!([both(Some(1), Some(1)), named]));
        let after = shifted(&before, Some("checkout"), 250);
        assert_eq!(
            seen(&after, None).rules,
            [weights(0, Some(1), Some(1)), weights(1, Some(9750), Some(250))]
        );
        assert_eq!(restored(&after, &original(&before, Some("checkout")), BACKENDS), Some(before.clone()));
        let unsupported = seen(&before, Some("cart")).unsupported.unwrap();
        assert!(unsupported.starts_with("it has no rule named cart"), "{unsupported}");
        assert_eq!(with_weight(&before, &target(Some("cart")), BACKENDS, Percent::ZERO), None);
    }

    #[test]
    fn absent_numbers_are_equal_shares_and_become_absent_again() {
        let before = route(&json!([both(None, None)]));
        let after = shifted(&before, None, 5_000);
        assert_eq!(seen(&after, None).rules, [weights(0, Some(5_000), Some(5_000))]);
        assert_eq!(with_weight(&after, &target(None), BACKENDS, percent(5_000)), None);
        assert_eq!(restored(&after, &original(&before, None), BACKENDS), Some(before));
    }

    #[test]
    fn the_canary_goes_to_zero_whatever_was_added_in_mid_run() {
        let mut rule = both(Some(7_500), Some(2_500));
        rule["backendRefs"]
            .as_array_mut()
            .unwrap()
            .extend([backend("legacy", Some(5)), backend("shop-canary", Some(9))]);
        let after = shifted(&route(&json!([rule])), None, 0);
        let numbers: Vec<_> =
            list(&after, "/spec/rules/0/backendRefs").iter().map(|b| b["weight"].as_i64()).collect();
        assert_eq!(numbers, [Some(10_000), Some(0), Some(5), Some(0)]);
    }

    #[test]
    fn rules_that_moved_in_mid_run_get_their_numbers_back() {
        let before = route(&json!([both(Some(90), Some(10)), both(None, None)]));
        let user = original(&before, None);
        let mut during = shifted(&before, None, 100);
        let legacy = json!({"backendRefs": [backend("legacy", None)]});
        during["spec"]["rules"].as_array_mut().unwrap().insert(0, legacy.clone());
        assert_eq!(
            restored(&during, &user, BACKENDS),
            Some(route(&json!([legacy, both(Some(90), Some(10)), both(None, None)])))
        );
    }

    #[test]
    fn a_rule_that_was_added_in_mid_run_keeps_its_own_numbers_and_none_keeps_ours() {
        let before = route(&json!([both(Some(90), Some(10))]));
        let user = original(&before, None);
        let ours = both(Some(9_900), Some(100));
        let during = route(&json!([ours, both(Some(1), Some(2)), ours]));
        assert_eq!(
            restored(&during, &user, BACKENDS),
            Some(route(&json!([both(Some(90), Some(10)), both(Some(1), Some(2)), both(None, None)])))
        );
    }

    #[test]
    fn numbers_that_were_written_over_ours_stay() {
        let before = route(&json!([both(Some(90), Some(10)), both(None, None)]));
        let during = route(&json!([both(Some(80), Some(20)), both(Some(9_900), Some(100))]));
        assert_eq!(
            restored(&during, &original(&before, None), BACKENDS),
            Some(route(&json!([both(Some(80), Some(20)), both(None, None)])))
        );
    }

    #[test]
    fn a_rule_that_lost_its_name_in_mid_run_does_not_keep_our_numbers() {
        let mut named = both(Some(90), Some(10));
        named["name"] = json!("checkout");
        let before = route(&json!([both(None, None), named]));
        let user = original(&before, Some("checkout"));
        let mut during = shifted(&before, Some("checkout"), 100);
        during["spec"]["rules"][1]["name"] = json!("pay");
        let after = restored(&during, &user, BACKENDS).unwrap();
        assert_eq!(seen(&after, None).rules, [weights(0, None, None), weights(1, Some(90), Some(10))]);
        assert_eq!(restored(&after, &user, BACKENDS), None);
    }

    fn entry(manager: &str, time: &str, fields: &Value) -> Value {
        json!({"manager": manager, "operation": "Update", "time": time, "fieldsV1": fields})
    }

    #[test]
    fn our_entries_are_removed_from_the_last_to_the_first() {
        let mut route = route(&json!([]));
        assert_eq!(forget_patch(&route), None);
        let ours = entry(MANAGER_TRAFFIC, "2026-05-04T09:00:00Z", &json!({"f:spec": {"f:rules": {}}}));
        let helm = entry("helm", "2026-05-04T08:00:00Z", &json!({"f:spec": {}}));
        route["metadata"]["managedFields"] = json!([ours, helm, ours]);
        assert_eq!(
            forget_patch(&route).unwrap(),
            json!([
                {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
                {"op": "remove", "path": "/metadata/managedFields/2"},
                {"op": "remove", "path": "/metadata/managedFields/0"},
            ])
        );
        route["metadata"]["managedFields"] = json!([ours]);
        assert_eq!(
            forget_patch(&route).unwrap()[1],
            json!({"op": "replace", "path": "/metadata/managedFields", "value": [{}]})
        );
    }

    #[test]
    fn who_else_wrote_the_rules_last_is_named() {
        let spec = json!({"f:spec": {"f:rules": {}}});
        let mut status = entry("traefik", "2026-05-04T12:00:00Z", &json!({"f:spec": {}}));
        status["subresource"] = json!("status");
        let mut route = route(&json!([]));
        route["metadata"]["managedFields"] = json!([
            entry("flux", "2026-05-04T10:00:00Z", &spec),
            entry("kubectl", "2026-05-04T09:00:00Z", &spec),
            entry("scoper", "2026-05-04T11:00:00Z", &json!({"f:spec": {"f:hostnames": {}}})),
            entry("labeller", "2026-05-04T11:00:00Z", &json!({"f:metadata": {}})),
            entry(MANAGER_TRAFFIC, "2026-05-04T11:00:00Z", &spec),
            status,
        ]);
        assert_eq!(seen(&route, None).other_manager.as_deref(), Some("flux"));
    }

    #[test]
    fn a_route_of_a_real_gateway_is_read() {
        struct Traefik;

        impl Parents for Traefik {
            fn controller_name(&self, namespace: &str, gateway: &str) -> Option<String> {
                ((namespace, gateway) == ("gateway", "davylamp"))
                    .then(|| "traefik.io/gateway-controller".to_owned())
            }
        }

        let route: Value = serde_json::from_str(include_str!("recorded/traefik.json")).unwrap();
        let seen = observe(Some(&route), &target(None), BACKENDS, &Traefik);
        let expected = Route {
            found: true,
            unsupported: None,
            rules: vec![weights(0, Some(9_500), Some(500)), weights(1, Some(9_500), Some(500))],
            ours: true,
            effective: Effective::Yes,
            other_manager: Some("flux".to_owned()),
        };
        assert_eq!(seen, expected);
        assert_eq!(forget_patch(&route).unwrap()[1]["path"], json!("/metadata/managedFields/1"));
    }

    fn any_json(key: &'static str) -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,6}".prop_map(Value::from),
            prop::sample::select(&["shop-stable", "shop-canary", MANAGER_TRAFFIC][..]).prop_map(Value::from),
        ];
        leaf.prop_recursive(7, 60, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    fn extra() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("x[a-z]{1,4}", any_json("[a-z]{1,5}"), 0..3)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()))
    }

    fn any_backend(name: &'static str) -> impl Strategy<Value = Value> {
        (prop::option::of(0..=1_000_000), extra()).prop_map(move |(weight, extra)| {
            let mut value = backend(name, weight);
            value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            value["filters"] = json!([{"type": "RequestHeaderModifier", "extra": extra}]);
            value
        })
    }

    fn any_rule() -> impl Strategy<Value = Value> {
        let backends = prop_oneof![
            (any_backend("shop-stable"), any_backend("shop-canary"), any::<bool>()).prop_map(
                |(stable, canary, swap)| if swap { vec![canary, stable] } else { vec![stable, canary] }
            ),
            prop::collection::vec(any_backend("legacy"), 0..3),
            any_backend("shop-stable").prop_map(|stable| vec![stable]),
        ];
        (backends, extra()).prop_map(|(backends, mut rule)| {
            rule["backendRefs"] = Value::from(backends);
            rule
        })
    }

    fn any_route() -> impl Strategy<Value = Value> {
        (prop::collection::vec(any_rule(), 0..6), extra()).prop_map(|(rules, extra)| {
            let mut route = route(&Value::from(rules));
            route["spec"]["extra"] = extra.clone();
            route["extra"] = extra;
            route
        })
    }

    /// Without the weights of the rules that are driven.
    fn weightless(route: &Value) -> Value {
        let mut bare = route.clone();
        for rule in seen(route, None).rules {
            let refs = bare.pointer_mut(&format!("/spec/rules/{}/backendRefs", rule.rule)).unwrap();
            for backend in refs.as_array_mut().unwrap() {
                backend.as_object_mut().unwrap().remove("weight");
            }
        }
        bare
    }

    proptest! {
        #[test]
        fn numbers_alone_change_and_come_back(before in any_route(), steps in prop::collection::vec(0..=10_000_u16, 1..4)) {
            let user = original(&before, None);
            let mut now = before.clone();
            for bp in steps {
                now = with_weight(&now, &target(None), BACKENDS, percent(bp)).unwrap_or(now);
                prop_assert_eq!(weightless(&now), weightless(&before));
                let numbers = seen(&now, None).rules;
                prop_assert_eq!(numbers.len(), user.rules.len());
                let bp = i32::from(bp);
                for rule in numbers {
                    prop_assert_eq!((rule.stable, rule.canary), (Some(10_000 - bp), Some(bp)));
                }
                prop_assert_eq!(with_weight(&now, &target(None), BACKENDS, percent(u16::try_from(bp).unwrap())), None);
            }
            let after = restored(&now, &user, BACKENDS).unwrap_or(now);
            prop_assert_eq!(&after, &before);
            prop_assert_eq!(restored(&after, &user, BACKENDS), None);
        }

        #[test]
        fn no_shape_is_too_odd(
            route in any_json("spec|rules|backendRefs|name|weight|parentRefs|metadata|managedFields|manager|status|parents|conditions|parentRef"),
            user in any_route(),
            rule in prop::option::of("[a-z]"),
        ) {
            let rule = rule.as_deref();
            for odd in [route.clone(), json!({"spec": route, "metadata": route, "status": route}), json!({"spec": {"rules": route}})] {
                let seen = seen(&odd, rule);
                prop_assert_ne!(seen.effective, Effective::Yes);
                let _ = with_weight(&odd, &target(rule), BACKENDS, Percent::FULL);
                let _ = restored(&odd, &original(&user, rule), BACKENDS);
                let _ = forget_patch(&odd);
            }
        }
    }
}
