//! Where metrics may be found when no admin has said so: Services with names that are usual for Prometheus and its like are
//! asked whether they answer. What is found is only told; who may ask whom is an admin's to say.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use davylamp_api::MetricSourceSpec;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::MetricsApi;
use crate::clock::Clock;

/// So many Services are asked at most, and so long each.
const MOST: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);
/// What was found is believed for so long.
const LASTS: Duration = Duration::from_mins(10);

/// The end of a Service's name, and the path under which it answers as Prometheus does.
const USUAL: [(&str, &str); 13] = [
    ("prometheus-operated", ""),
    ("prometheus-k8s", ""),
    ("kube-prometheus-stack-prometheus", ""),
    ("prometheus-server", ""),
    ("prometheus", ""),
    ("thanos-query-frontend", ""),
    ("thanos-query", ""),
    ("thanos-querier", ""),
    ("vmsingle", ""),
    ("victoria-metrics-single-server", ""),
    ("mimir-gateway", "/prometheus"),
    ("mimir-nginx", "/prometheus"),
    ("cortex-nginx", "/prometheus"),
];

/// The addresses of those Services, given as namespace, name and how to read the spec, that have such a name; the more usual
/// first.
pub fn addresses(services: impl Iterator<Item = (String, String, impl FnOnce() -> Value)>) -> Vec<String> {
    let mut found: Vec<_> = services
        .filter_map(|(namespace, name, spec)| {
            let is_it = |(usual, _): &(&str, &str)| {
                name.strip_suffix(usual).is_some_and(|rest| rest.is_empty() || rest.ends_with('-'))
            };
            let at = USUAL.iter().position(is_it)?;
            let spec = spec();
            // Whoever may write a Service could otherwise send us to any host.
            spec.get("selector").filter(|_| spec.get("type").is_none_or(|kind| kind != "ExternalName"))?;
            let ports = spec.get("ports")?.as_array()?;
            let web = |port: &&Value| {
                port.get("name")
                    .and_then(Value::as_str)
                    .is_some_and(|name| name.contains("http") || name.contains("web"))
            };
            let port = ports.iter().find(web).or_else(|| ports.first())?.get("port")?.as_u64()?;
            Some((at, format!("http://{name}.{namespace}.svc:{port}{}", USUAL.get(at)?.1)))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, address)| address).take(MOST).collect()
}

/// What was found of late.
#[derive(Clone)]
pub struct Suggestion {
    api: Arc<dyn MetricsApi>,
    clock: Clock,
    found: Arc<Mutex<Found>>,
    wake: Arc<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Found {
    address: Option<String>,
    asked: Option<Instant>,
    asking: bool,
}

impl fmt::Debug for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suggestion").finish_non_exhaustive()
    }
}

impl Suggestion {
    /// Asks by this API; `wake` is called when something is found.
    pub fn new(api: Arc<dyn MetricsApi>, clock: Clock, wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { api, clock, found: Arc::default(), wake: Arc::new(wake) }
    }

    /// The address that answered first; asks these in the background when that is unknown, or too long ago.
    #[must_use]
    pub fn current(&self, addresses: impl FnOnce() -> Vec<String>) -> Option<String> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if !found.asking && found.asked.is_none_or(|asked| asked.elapsed() >= LASTS) {
            found.asking = true;
            let (this, addresses) = (self.clone(), addresses());
            tokio::spawn(async move { this.ask(addresses).await });
        }
        found.address.clone()
    }

    async fn ask(self, addresses: Vec<String>) {
        let mut address = None;
        for url in addresses {
            let source = MetricSourceSpec { url, ..MetricSourceSpec::default() };
            let asked = self.api.query(&source, "vector(1)", self.clock.now_ms());
            if matches!(timeout(PATIENCE, asked).await, Ok(Ok(_))) {
                address = Some(source.url);
                break;
            }
        }
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = found.address != address;
        *found = Found { address, asked: Some(Instant::now()), asking: false };
        drop(found);
        if is_news {
            (self.wake)();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::BoxFuture;
    use serde_json::json;

    use super::*;
    use crate::metrics::{Answer, QueryError};

    #[test]
    fn usual_names_are_known_with_a_prefix_too() {
        let services = [
            ("shop", "checkout", json!({"selector": {"app": "p"}, "ports": [{"port": 80}]})),
            ("shop", "myprometheus", json!({"selector": {"app": "p"}, "ports": [{"port": 80}]})),
            ("mimir", "mimir-nginx", json!({"selector": {"app": "p"}, "ports": [{"port": 80}]})),
            (
                "monitoring",
                "prometheus-operated",
                json!({"selector": {"app": "p"}, "ports": [{"name": "grpc", "port": 10901}, {"name": "http-web", "port": 9090}]}),
            ),
            (
                "monitoring",
                "kps-prometheus",
                json!({"selector": {"app": "p"}, "ports": [{"name": "reloader", "port": 8080}, {"name": "web", "port": 9091}]}),
            ),
            ("monitoring", "prometheus", json!({})),
            ("shop", "prometheus", json!({"ports": [{"port": 80}]})),
            (
                "shop",
                "a-prometheus",
                json!({"type": "ExternalName", "selector": {"app": "p"}, "ports": [{"port": 80}]}),
            ),
        ];
        assert_eq!(
            addresses(
                services
                    .into_iter()
                    .map(|(namespace, name, spec)| { (namespace.to_owned(), name.to_owned(), move || spec) })
            ),
            [
                "http://prometheus-operated.monitoring.svc:9090",
                "http://kps-prometheus.monitoring.svc:9091",
                "http://mimir-nginx.mimir.svc:80/prometheus",
            ]
        );
    }

    /// Answers at one address, never at another, and refuses all others.
    struct OneAnswers;

    impl MetricsApi for OneAnswers {
        fn query<'a>(
            &'a self,
            source: &'a MetricSourceSpec,
            _: &'a str,
            _: i64,
        ) -> BoxFuture<'a, Result<Answer, QueryError>> {
            async move {
                match source.url.as_str() {
                    "http://there" => Ok(Answer::default()),
                    "http://silent" => std::future::pending().await,
                    _ => Err(QueryError::Http(404)),
                }
            }
            .boxed()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_answers_is_told_and_nothing_is_asked_twice() {
        let (sender, mut woken) = tokio::sync::mpsc::unbounded_channel();
        let clock = Clock::virtual_from(davylamp_api::Instant::UNIX_EPOCH);
        let suggestion = Suggestion::new(Arc::new(OneAnswers), clock, move || sender.send(()).unwrap());
        let all =
            || ["http://other", "http://silent", "http://there", "http://more"].map(str::to_owned).to_vec();
        assert_eq!(suggestion.current(all), None);
        assert_eq!(suggestion.current(|| unreachable!("it is being asked")), None);
        woken.recv().await.unwrap();
        let known = suggestion.current(|| unreachable!("it is known"));
        assert_eq!(known.as_deref(), Some("http://there"));
        assert!(woken.is_empty());
    }
}
