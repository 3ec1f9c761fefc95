//! What was measured, row by row.

use super::machine::Usage;
use super::work::Work;
use super::{Variant, Way};

/// Which direction is the good one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A rate.
    Higher,
    /// A cost or a latency.
    Lower,
}

/// A row before anything was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowKind {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
}

/// A row with its samples.
#[derive(Debug, Clone)]
pub struct Row {
    /// The way that was measured.
    pub way: Way,
    /// Its name, without the way.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// Which direction is the good one.
    pub better: Better,
    /// Samples without the mesh; empty where there is nothing to measure without a proxy.
    pub plain: Vec<f64>,
    /// Samples with it.
    pub mesh: Vec<f64>,
    /// The least disturbed of the dropped samples, with its disturbance, for each variant.
    fallback: [Option<(f64, f64)>; 2],
}

/// Rows of memory and start-up, which have no variant without the mesh.
const ALONE: [RowKind; 6] = [
    RowKind {
        name: "rss_idle_mb",
        unit: "MB",
        better: Better::Lower,
    },
    RowKind {
        name: "rss_per_1000_idle_mb",
        unit: "MB",
        better: Better::Lower,
    },
    RowKind {
        name: "rss_1000_idle_mb",
        unit: "MB",
        better: Better::Lower,
    },
    RowKind {
        name: "rss_5000_idle_mb",
        unit: "MB",
        better: Better::Lower,
    },
    RowKind {
        name: "ready_ms",
        unit: "ms",
        better: Better::Lower,
    },
    RowKind {
        name: "ready_takeover_ms",
        unit: "ms",
        better: Better::Lower,
    },
];

impl Row {
    fn new((way, kind): (Way, RowKind)) -> Self {
        let RowKind { name, unit, better } = kind;
        Self {
            way,
            name,
            unit,
            better,
            plain: Vec::new(),
            mesh: Vec::new(),
            fallback: [None; 2],
        }
    }

    /// Its name with the way's before it.
    #[must_use]
    pub fn full_name(&self) -> String {
        full_name(self.way, self.name)
    }

    /// The median without the mesh.
    #[must_use]
    pub fn plain_median(&self) -> Option<f64> {
        self.median(&self.plain, Variant::Plain)
    }

    /// The median with it.
    #[must_use]
    pub fn mesh_median(&self) -> Option<f64> {
        self.median(&self.mesh, Variant::Mesh)
    }

    /// Mesh over plain.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.mesh_median()? / self.plain_median().filter(|plain| *plain > 0.0)?)
    }

    /// Whether a variant has nothing but dropped samples, so that the least disturbed one
    /// stands for it.
    #[must_use]
    pub fn disturbed(&self) -> bool {
        (self.plain.is_empty() && self.fallback[0].is_some())
            || (self.mesh.is_empty() && self.fallback[1].is_some())
    }

    fn median(&self, samples: &[f64], variant: Variant) -> Option<f64> {
        median(samples).or_else(|| self.fallback[index(variant)].map(|(value, _)| value))
    }
}

pub(super) fn full_name(way: Way, name: &str) -> String {
    format!("{}/{name}", way.name())
}

fn index(variant: Variant) -> usize {
    match variant {
        Variant::Plain => 0,
        Variant::Mesh => 1,
    }
}

/// The middle sample, or the mean of the two in the middle.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(sorted.len() / 2 - 1)?;
    Some(f64::midpoint(lower, upper))
}

/// Everything that was measured.
#[derive(Debug, Clone)]
pub struct Results {
    rows: Vec<Row>,
    /// Samples that were kept, both variants.
    pub kept: usize,
    /// Samples that were dropped because something else used the machine, both variants.
    pub dropped: usize,
}

/// The values of one sample, one for each row of its work.
pub(super) struct Measured {
    pub(super) way: Way,
    pub(super) work: Work,
    pub(super) values: Vec<f64>,
}

impl Results {
    /// Rows whose names are wanted, without samples.
    pub(super) fn new(wanted: impl Fn(&str) -> bool) -> Self {
        let works = Way::ALL
            .into_iter()
            .flat_map(|way| way.works().iter().map(move |work| (way, work)));
        let alone = ALONE.map(|kind| (Way::Tunnel, kind));
        let rows = works
            .flat_map(|(way, work)| work.rows().into_iter().map(move |kind| (way, kind)))
            .chain(alone)
            .filter(|(way, kind)| wanted(&full_name(*way, kind.name)))
            .map(Row::new)
            .collect();
        Self {
            rows,
            kept: 0,
            dropped: 0,
        }
    }

    /// Rows that have samples.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.mesh_median().is_some())
    }

    /// Whether memory or start-up is to be measured.
    pub(super) fn wants_memory(&self) -> bool {
        ALONE
            .iter()
            .any(|kind| self.rows.iter().any(|row| row.name == kind.name))
    }

    pub(super) fn keep_sample(&mut self, variant: Variant, measured: &Measured) {
        self.kept += 1;
        self.fill(variant, measured, |row, value| match variant {
            Variant::Plain => row.plain.push(value),
            Variant::Mesh => row.mesh.push(value),
        });
    }

    pub(super) fn drop_sample(&mut self, variant: Variant, measured: &Measured, usage: &Usage) {
        self.dropped += 1;
        let disturbance = usage.disturbance();
        self.fill(variant, measured, |row, value| {
            let best = &mut row.fallback[index(variant)];
            if best.is_none_or(|(_, known)| disturbance < known) {
                *best = Some((value, disturbance));
            }
        });
    }

    fn fill(&mut self, variant: Variant, measured: &Measured, mut put: impl FnMut(&mut Row, f64)) {
        for (kind, value) in measured.work.rows().into_iter().zip(&measured.values) {
            // Without a mesh there are no proxies whose CPU time could be counted.
            if variant == Variant::Plain && kind.name.starts_with("cpu_s") {
                continue;
            }
            let mut rows = self.rows.iter_mut();
            if let Some(row) = rows.find(|row| (row.way, row.name) == (measured.way, kind.name)) {
                put(row, *value);
            }
        }
    }

    /// Adds a sample of a row without a plain variant.
    pub(super) fn push(&mut self, name: &str, value: f64) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == name) {
            row.mesh.push(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn dropped_samples_stand_in_only_where_no_clean_one_is() {
        let mut results = Results::new(|name| name == "tunnel/bulk_8");
        let measured = |value| Measured {
            way: Way::Tunnel,
            work: Work::Bulk(8),
            values: vec![value],
        };
        let usage = |foreign| Usage {
            wall: 1.0,
            foreign,
            ..Usage::default()
        };
        results.drop_sample(Variant::Mesh, &measured(1.0), &usage(0.5));
        results.drop_sample(Variant::Mesh, &measured(2.0), &usage(0.2));
        let row = results.rows().next().unwrap();
        assert_eq!((row.mesh_median(), row.disturbed()), (Some(2.0), true));
        results.keep_sample(Variant::Mesh, &measured(5.0));
        results.keep_sample(Variant::Plain, &measured(10.0));
        let row = results.rows().next().unwrap();
        assert_eq!((row.ratio(), row.disturbed()), (Some(0.5), false));
        assert_eq!((results.kept, results.dropped), (2, 2));
    }
}
