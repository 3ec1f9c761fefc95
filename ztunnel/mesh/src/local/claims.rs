//! Keys and addresses belong to one object each.

use std::net::IpAddr;

use foldhash::HashMap;

use super::LocalError;
use crate::{NetworkMode, Service, Workload};

/// Which keys and addresses are taken, and where that was said.
#[derive(Default)]
pub(super) struct Claims {
    keys: HashMap<(&'static str, String), String>,
    addresses: HashMap<(String, IpAddr), Claim>,
}

struct Claim {
    owner: String,
    path: String,
    mode: NetworkMode,
}

impl Claims {
    pub(super) fn workload(&mut self, path: &str, workload: &Workload) -> Result<(), LocalError> {
        self.key(path, "uid", "uid of the workload", workload.uid.to_string())?;
        let owner = format!("workload {}", workload.uid);
        for (at, address) in workload.workload_ips.iter().enumerate() {
            let path = format!("{path}.workloadIps[{at}]");
            self.address(
                &owner,
                path,
                &workload.network,
                *address,
                workload.network_mode,
            )?;
        }
        Ok(())
    }

    pub(super) fn service(&mut self, path: &str, service: &Service) -> Result<(), LocalError> {
        self.key(
            path,
            "hostname",
            "key of the service",
            service.key().to_string(),
        )?;
        let owner = format!("service {}", service.key());
        for (at, vip) in service.vips.iter().enumerate() {
            let path = format!("{path}.vips[{at}]");
            self.address(
                &owner,
                path,
                &vip.network,
                vip.address,
                NetworkMode::Standard,
            )?;
        }
        Ok(())
    }

    pub(super) fn key(
        &mut self,
        path: &str,
        field: &str,
        kind: &'static str,
        key: String,
    ) -> Result<(), LocalError> {
        match self.keys.insert((kind, key.clone()), path.to_owned()) {
            None => Ok(()),
            Some(first) => Err(LocalError::Duplicate {
                path: format!("{path}.{field}"),
                kind,
                key,
                first,
            }),
        }
    }

    /// Pods on their node's network share its address; other workloads share none.
    fn address(
        &mut self,
        owner: &str,
        path: String,
        network: &str,
        address: IpAddr,
        mode: NetworkMode,
    ) -> Result<(), LocalError> {
        let claim = Claim {
            owner: owner.to_owned(),
            path: path.clone(),
            mode,
        };
        let Some(first) = self.addresses.insert((network.to_owned(), address), claim) else {
            return Ok(());
        };
        if mode == NetworkMode::HostNetwork && first.mode == NetworkMode::HostNetwork {
            return Ok(());
        }
        Err(LocalError::AddressTaken {
            path,
            address,
            network: network.to_owned(),
            owner: first.owner,
            first: first.path,
        })
    }
}
