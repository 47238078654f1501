//! What is wrong on this cluster, and what to do. First everything is read, then each part is judged by itself. Changes
//! nothing, reads no Secret, and asks no metric source.

mod cluster;
mod controller;
mod definitions;
mod finding;
mod rollouts;
mod sources;

use std::collections::BTreeSet;

use anyhow::Result;
use clap::Args;
use davylamp_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::DynamicObject;

use self::cluster::{Answer, Cluster, Server, Sighting, Unread};
pub(crate) use self::finding::Diagnosis;
use self::finding::{Check, Finding};

/// Where to look.
#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Only the Rollouts of this namespace
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// The Rollouts of all namespaces; so it is unless one is named
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// The namespace of the controller's Lease
    #[arg(long, value_name = "NAME", default_value = "davylamp-system")]
    controller_namespace: String,
    /// The name of the controller's Lease
    #[arg(long, value_name = "NAME", default_value = "davylamp-controller")]
    lease: String,
}

/// All that was read.
struct Seen {
    server: Server,
    /// Kinds of ours that are served, by their plural.
    served: Answer<BTreeSet<String>>,
    definitions: Answer<Vec<CustomResourceDefinition>>,
    gateway_api: Answer<BTreeSet<String>>,
    lease: Answer<Sighting>,
    rollouts: Answer<Vec<DynamicObject>>,
    /// The Rollouts are those of this namespace.
    within: Option<String>,
    /// It was not asked for, but no more could be read.
    instead: bool,
    sources: Answer<Vec<DynamicObject>>,
    /// Where there are no sources.
    services: Answer<Vec<DynamicObject>>,
}

impl Doctor {
    pub(crate) fn run(&self) -> Result<Diagnosis> {
        // There is one already when this is not the first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seen = runtime.block_on(self.look())?;
        Ok(Diagnosis::new(self.judge(&seen)))
    }

    async fn look(&self) -> Result<Seen> {
        let cluster = Cluster::of_context().await?;
        let server = cluster.server().await?;
        // It has as long as all the rest takes to be renewed.
        let lease = cluster.lease(&self.controller_namespace, &self.lease).await;
        let served = cluster.served(definitions::OURS).await;
        let definitions = cluster.definitions(definitions::names()).await;
        let gateway_api = cluster.served(definitions::GATEWAY_API).await;
        let mut within = self.namespace.clone().filter(|_| !self.all_namespaces);
        let mut rollouts = cluster.rollouts(within.as_deref()).await;
        let instead = within.is_none() && matches!(rollouts, Err(Unread::Forbidden));
        if instead {
            let own = cluster.default_namespace();
            rollouts = cluster.rollouts(Some(own)).await;
            within = Some(own.to_owned());
        }
        let sources = cluster.sources().await;
        let services = match &sources {
            Ok(sources) if sources.is_empty() => cluster.services().await,
            Ok(_) | Err(_) => Ok(Vec::new()),
        };
        let lease = cluster.watched(lease, &self.controller_namespace, &self.lease).await;
        Ok(Seen {
            server,
            served,
            definitions,
            gateway_api,
            lease,
            rollouts,
            within,
            instead,
            sources,
            services,
        })
    }

    fn judge(&self, seen: &Seen) -> Vec<Finding> {
        let Seen {
            server,
            served,
            definitions,
            gateway_api,
            lease,
            rollouts,
            within,
            instead,
            sources,
            services,
        } = seen;
        let known = rollouts.as_deref().unwrap_or_default();
        let mut findings = vec![server_finding(server)];
        findings.extend(definitions::ours(served, definitions));
        findings.push(definitions::gateway_api(gateway_api));
        findings.push(controller::finding(lease, &self.controller_namespace, &self.lease));
        findings.extend(match sources {
            Ok(none) if none.is_empty() => vec![sources::none(known, services)],
            Ok(sources) => sources::each(sources, known, within.is_none()),
            Err(why) => vec![Finding::unread(Check::MetricSources, "list MetricSources", why)],
        });
        let within = within.as_deref();
        if *instead {
            let what = "list Rollouts of all namespaces";
            findings.push(Finding::unread(Check::Rollouts, what, &Unread::Forbidden));
        }
        match rollouts {
            Ok(rollouts) => findings.extend(rollouts::findings(rollouts, within, server.now)),
            Err(why) => {
                let of = within.map(|name| format!(" of namespace {name}")).unwrap_or_default();
                findings.push(Finding::unread(Check::Rollouts, &format!("list Rollouts{of}"), why));
            }
        }
        findings
    }
}

/// The oldest version that is aimed at, as minor.
const OLDEST: u32 = 33;

fn server_finding(server: &Server) -> Finding {
    let Server { url, version, .. } = server;
    let Some(version) = version else {
        return Finding::ok(Check::ApiServer, format!("{url} answers, but does not tell its version"));
    };
    let mut numbers = version.trim_start_matches('v').split('.').map_while(|part| part.parse::<u32>().ok());
    let seen = format!("{version} at {url}");
    match (numbers.next(), numbers.next()) {
        (Some(1), Some(minor)) if minor < OLDEST => {
            let next = format!("Davylamp aims at 1.{OLDEST} and newer, and is not tested with this one");
            Finding::warning(Check::ApiServer, seen, next)
        }
        _ => Finding::ok(Check::ApiServer, seen),
    }
}
