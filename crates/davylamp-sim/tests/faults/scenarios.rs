//! What happens to a Rollout, without any fault: each a few virtual minutes long.

use davylamp_sim::Scenario;

/// A Rollout of four pods in two steps, with errors as its metric, that is stable after half a minute.
const BASE: &str = "
rollout:
  apiVersion: davylamp.dev/v1alpha1
  kind: Rollout
  metadata: {name: shop}
  spec:
    replicas: 4
    selector: {matchLabels: {app: shop}}
    template:
      metadata: {labels: {app: shop}}
      spec:
        terminationGracePeriodSeconds: 10
        containers: [{name: app, image: 'shop:1'}]
    progressDeadline: 90s
    service: shop
    strategy:
      canary: {steps: [{weight: 25%}, {weight: 50%}]}
      traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: shop}]}}]
    analysis:
      source: default
      hold: {min: 15s, max: 4m}
      warmup: 5s
      settle: 5s
      metrics:
      - name: errors
        ratio: {events: 'http_requests_total{code=~\"5..\"}', total: http_requests_total}
world:
  users: {requestsPerSecond: 600}
  pods: {start: 3s, stop: 5s}
  scrapes: {interval: 5s}
  versions:
    'shop:1': {errors: 1%}
    'shop:2': {errors: 1%}
    'shop:3': {errors: 1%}
    'shop:bad': {errors: 12%}
    'shop:late': {errors: 1%, later: {after: 45s, errors: 20%}}
    'shop:stuck': {neverReady: true}
last: 10m
expect: {lost: 1000000}
";

/// Name, what is done, and what must come of it.
const STORIES: &[(&str, &str)] = &[
    (
        "good",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "bad",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:bad'}}], expect: {outcome: RolledBack, phase: Degraded, stable: 'shop:1'}}",
    ),
    (
        "late regression",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:late'}}], expect: {outcome: RolledBack, stable: 'shop:1'}}",
    ),
    (
        "no data",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}], faults: [{when: {at: 50s}, what: {metricsAway: 30m}}], expect: {phase: Paused, stable: 'shop:1'}}",
    ),
    (
        "no traffic",
        "{events: [{since: {state: Healthy}, at: 30s, do: {users: 0}}, {since: {state: Healthy}, at: 10s, do: {release: 'shop:2'}}], expect: {stable: 'shop:1'}}",
    ),
    (
        "never ready",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:stuck'}}], expect: {outcome: RolledBack, phase: Degraded, stable: 'shop:1'}}",
    ),
    (
        "pods are late for the deadline",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Scaling, step: 1}, at: 0s, do: {ready: false}}, {since: {state: Degraded}, at: 100s, do: {ready: true}}], expect: {outcome: Promoted, stable: 'shop:2'}}",
    ),
    ("first release", "{events: [], expect: {phase: Healthy, stable: 'shop:1'}}"),
    (
        "abort",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {action: abort}}], expect: {outcome: RolledBack, phase: Degraded, stable: 'shop:1'}}",
    ),
    (
        "retry",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {action: abort}}, {since: {state: Degraded}, at: 30s, do: {action: retry}}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "promote",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: promoteFully}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "promote a pause",
        "{events: [{since: {state: Healthy}, at: 30s, do: {users: 0}}, {since: {state: Healthy}, at: 10s, do: {release: 'shop:2'}}, {since: {state: Paused}, at: 60s, do: promoteFully}, {since: {state: Healthy}, at: 10s, do: {users: 600}}], expect: {phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "new template in mid-run",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {release: 'shop:3'}}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:3'}}",
    ),
    (
        "back to stable",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {release: 'shop:1'}}], expect: {phase: Healthy, stable: 'shop:1'}}",
    ),
    (
        "scale in mid-run",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {scale: 6}}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "scale down in mid-run",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {scale: 2}}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "capacity lost",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {lose: 100%}}, {since: {state: Holding}, at: 60s, do: restore}], expect: {outcome: Promoted, stable: 'shop:2'}}",
    ),
    (
        "route edited",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {patchRoute: {spec: {hostnames: [shop.example]}}}}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "route deleted",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: deleteRoute}], expect: {stable: 'shop:1'}}",
    ),
    (
        "deleted and made again",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: delete}, {since: {}, at: 85s, do: create}], expect: {phase: Healthy, stable: 'shop:1'}}",
    ),
    (
        "steps edited",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {patch: {spec: {strategy: {canary: {steps: [{weight: 25%}, {weight: 40%}, {weight: 60%}]}}}}}}], expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "fresh baseline",
        "{events: [{since: {state: Healthy}, at: 10s, do: {patch: {spec: {strategy: {canary: {baseline: fresh}}}}}}, {since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}], world: {users: {requestsPerSecond: 1800}}, expect: {outcome: Promoted, phase: Healthy, stable: 'shop:2'}}",
    ),
    (
        "fresh baseline of a bad one",
        "{events: [{since: {state: Healthy}, at: 10s, do: {patch: {spec: {strategy: {canary: {baseline: fresh}}}}}}, {since: {state: Healthy}, at: 30s, do: {release: 'shop:bad'}}], expect: {outcome: RolledBack, phase: Degraded, stable: 'shop:1'}}",
    ),
    (
        "invalid edit",
        "{events: [{since: {state: Healthy}, at: 30s, do: {release: 'shop:2'}}, {since: {state: Judging, step: 1}, at: 5s, do: {patch: {spec: {analysis: {metrics: [{name: errors, ratio: {events: 'rate(x[5m])', total: http_requests_total}}]}}}}}], expect: {stable: 'shop:2'}}",
    ),
];

/// All of them, with their names.
pub(crate) fn all() -> Vec<(&'static str, Scenario)> {
    let base: serde_json::Value = serde_yaml::from_str(BASE).unwrap();
    STORIES
        .iter()
        .map(|(name, story)| {
            let mut scenario = base.clone();
            let story: serde_json::Value =
                serde_yaml::from_str(story).unwrap_or_else(|e| panic!("{name}: {e}"));
            for (field, value) in story.as_object().unwrap() {
                for (inner, value) in value.as_object().into_iter().flatten() {
                    scenario[field][inner] = value.clone();
                }
                if value.is_array() {
                    scenario[field] = value.clone();
                }
            }
            (*name, serde_json::from_value(scenario).unwrap_or_else(|e| panic!("{name}: {e}")))
        })
        .collect()
}
