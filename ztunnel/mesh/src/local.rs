//! The local file: workloads, services and policies in a file, without a control plane. Files of
//! Istio's ztunnel (`LOCAL_XDS_PATH`) load unchanged.
//!
//! A file is used as a whole or not at all: the first error names the object and the field. Several
//! documents (a file, the keys of the settings file, a text of the environment) are merged before
//! they are checked, so that they cannot define the same object twice.

mod claims;
mod error;
mod fields;
mod gateway;
mod policies;
mod scalars;
mod services;
mod workloads;

use std::fmt::Display;

use foldhash::HashSet;
use serde::Deserialize;

use self::claims::Claims;
pub use self::error::LocalError;

pub use self::policies::PolicyEntry;
pub use self::services::ServiceEntry;
pub use self::workloads::WorkloadEntry;
use super::yaml;
use super::{Identity, Interner, Policy, PolicyScope, Service, Snapshot, Workload};

/// The mesh of a local file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalMesh {
    /// The workloads, in the order of the file.
    pub workloads: Vec<Workload>,
    /// The services.
    pub services: Vec<Service>,
    /// The policies.
    pub policies: Vec<Policy>,
    /// Allowed but probably unintended settings, for example a policy that a workload lists and the
    /// file does not define. To be logged.
    pub warnings: Vec<String>,
}

/// One parsed document, not checked yet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Document {
    /// The key `workloads`.
    pub workloads: Vec<WorkloadEntry>,
    /// The key `services`.
    pub services: Vec<ServiceEntry>,
    /// The key `policies`.
    pub policies: Vec<PolicyEntry>,
    /// The name of this document in error messages; empty if there is only one.
    #[serde(skip)]
    pub source: String,
}

/// Reads a local file. `cluster.local` is the trust domain of workloads that set none.
///
///
/// # Errors
/// When anything in it is wrong.
pub fn parse(yaml: &str) -> Result<LocalMesh, LocalError> {
    LocalMesh::assemble(vec![Document::read(yaml)?], "cluster.local")
}

impl Document {
    /// Reads one document without checking its objects against each other.
    ///
    /// # Errors
    /// When it is no YAML, a key is unknown or a value is invalid.
    pub fn read(yaml: &str) -> Result<Self, LocalError> {
        Ok(yaml::read(yaml)?)
    }

    /// As [`Self::read`], with a name that every error message begins with.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_as(source: &str, yaml: &str) -> Result<Self, LocalError> {
        let document: Self = yaml::read(yaml).map_err(|error| LocalError::Document {
            document: source.to_owned(),
            error,
        })?;
        Ok(Self {
            source: source.to_owned(),
            ..document
        })
    }

    /// The path of an object.
    fn path(&self, kind: &str, at: usize) -> String {
        let source = if self.source.is_empty() { "" } else { ": " };
        format!("{}{source}{kind}[{at}]", self.source)
    }
}

impl LocalMesh {
    /// Merges documents. `trust_domain` is that of workloads that set none.
    ///
    /// # Errors
    /// When an object is invalid, or conflicts with another one.
    pub fn assemble(documents: Vec<Document>, trust_domain: &str) -> Result<Self, LocalError> {
        let mut texts = Interner::new();
        let mut mesh = Self::default();
        let mut claims = Claims::default();
        for (path, entry) in numbered(&documents, "workloads", |document| &document.workloads) {
            let workload = entry
                .build(trust_domain, &mut texts)
                .map_err(|bad| invalid(&path, &bad))?;
            claims.workload(&path, &workload)?;
            mesh.workloads.push(workload);
        }
        for (path, entry) in numbered(&documents, "services", |document| &document.services) {
            let service = entry
                .build(&mut texts)
                .map_err(|bad| invalid(&path, &bad))?;
            claims.service(&path, &service)?;
            mesh.services.push(service);
        }
        for (path, entry) in numbered(&documents, "policies", |document| &document.policies) {
            let policy = entry
                .build(&mut texts)
                .map_err(|bad| invalid(&path, &bad))?;
            claims.key(&path, "name", "key of the policy", policy.key())?;
            mesh.policies.push(policy);
        }
        mesh.warnings = mesh.warnings();
        Ok(mesh)
    }

    /// Builds the snapshot.
    #[must_use]
    pub fn into_snapshot(self) -> Snapshot {
        Snapshot::build(self.workloads, self.services, self.policies)
    }

    fn warnings(&self) -> Vec<String> {
        let selectable: HashSet<String> = self
            .policies
            .iter()
            .filter(|policy| policy.scope == PolicyScope::WorkloadSelector)
            .map(Policy::key)
            .collect();
        let services: HashSet<_> = self.services.iter().map(Service::key).collect();
        let mut warnings = Vec::new();
        for workload in &self.workloads {
            for key in workload.authorization_policies.iter() {
                if !selectable.contains(&**key) {
                    warnings.push(format!(
                        "workload {}: authorizationPolicies lists {key:?}, and there is no such \
                         policy with the scope WorkloadSelector: it is not enforced",
                        workload.uid
                    ));
                }
            }
            for (key, _) in workload.services.iter() {
                if !services.contains(key) {
                    warnings.push(format!(
                        "workload {}: services names {:?}, and there is no such service",
                        workload.uid,
                        key.to_string()
                    ));
                }
            }
        }
        for service in &self.services {
            let names = service.subject_alt_names.iter();
            for name in names.filter(|name| name.parse::<Identity>().is_err()) {
                warnings.push(format!(
                    "service {}: subjectAltNames holds {name:?}, which is no workload identity: no \
                     backend can present it",
                    service.key()
                ));
            }
        }
        warnings
    }
}

/// The objects of one kind with their paths.
fn numbered<'a, T: 'a>(
    documents: &'a [Document],
    kind: &'static str,
    objects: impl Fn(&'a Document) -> &'a Vec<T>,
) -> impl Iterator<Item = (String, &'a T)> {
    documents.iter().flat_map(move |document| {
        let objects = objects(document).iter().enumerate();
        objects.map(move |(at, entry)| (document.path(kind, at), entry))
    })
}

fn invalid(path: &impl Display, bad: &fields::BadField) -> LocalError {
    LocalError::Invalid {
        path: format!("{path}.{}", bad.field),
        problem: bad.problem.clone(),
    }
}

#[cfg(test)]
mod tests;
