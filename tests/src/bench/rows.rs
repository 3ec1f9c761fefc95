//! The rows of the results.

use super::machine::Usage;
use super::work::Work;
use super::{MeasuredPath, Variant};

/// Whether larger or smaller values are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// A rate.
    Higher,
    /// A cost or a latency.
    Lower,
}

/// The name and unit of a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowKind {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
}

/// A row with its samples.
#[derive(Debug, Clone)]
pub struct Row {
    /// The measured path.
    pub path: MeasuredPath,
    /// The name, without the path.
    pub name: &'static str,
    /// The unit.
    pub unit: &'static str,
    /// Whether larger or smaller values are better.
    pub better: Better,
    /// Samples without the mesh; empty for rows without a plain variant.
    pub plain: Vec<f64>,
    /// Samples with the mesh.
    pub mesh: Vec<f64>,
    /// For each variant, the least disturbed of the dropped samples, with its disturbance.
    fallback: [Option<(f64, f64)>; 2],
}

/// Rows of memory and start-up, which have no plain variant.
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
    fn new((path, kind): (MeasuredPath, RowKind)) -> Self {
        let RowKind { name, unit, better } = kind;
        Self {
            path,
            name,
            unit,
            better,
            plain: Vec::new(),
            mesh: Vec::new(),
            fallback: [None; 2],
        }
    }

    /// The name with the path as prefix.
    #[must_use]
    pub fn full_name(&self) -> String {
        full_name(self.path, self.name)
    }

    /// The median without the mesh.
    #[must_use]
    pub fn plain_median(&self) -> Option<f64> {
        self.median(&self.plain, Variant::Plain)
    }

    /// The median with the mesh.
    #[must_use]
    pub fn mesh_median(&self) -> Option<f64> {
        self.median(&self.mesh, Variant::Mesh)
    }

    /// The ratio of mesh to plain.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.mesh_median()? / self.plain_median().filter(|plain| *plain > 0.0)?)
    }

    /// Whether a variant has only dropped samples, of which the least disturbed one is used.
    #[must_use]
    pub fn disturbed(&self) -> bool {
        (self.plain.is_empty() && self.fallback[0].is_some())
            || (self.mesh.is_empty() && self.fallback[1].is_some())
    }

    fn median(&self, samples: &[f64], variant: Variant) -> Option<f64> {
        median(samples).or_else(|| self.fallback[index(variant)].map(|(value, _)| value))
    }
}

pub(super) fn full_name(path: MeasuredPath, name: &str) -> String {
    format!("{}/{name}", path.name())
}

fn index(variant: Variant) -> usize {
    match variant {
        Variant::Plain => 0,
        Variant::Mesh => 1,
    }
}

/// The median: the middle sample, or the mean of the two in the middle.
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

/// The results of a benchmark.
#[derive(Debug, Clone)]
pub struct Results {
    rows: Vec<Row>,
    /// The number of kept samples of both variants.
    pub kept: usize,
    /// The number of samples of both variants that were dropped because other processes used the machine.
    pub dropped: usize,
}

/// The values of one sample, one for each row of the work.
pub(super) struct Measured {
    pub(super) path: MeasuredPath,
    pub(super) work: Work,
    pub(super) values: Vec<f64>,
}

impl Results {
    /// The selected rows, without samples.
    pub(super) fn new(wanted: impl Fn(&str) -> bool) -> Self {
        let works = MeasuredPath::ALL
            .into_iter()
            .flat_map(|path| path.works().iter().map(move |work| (path, work)));
        let alone = ALONE.map(|kind| (MeasuredPath::Tunnel, kind));
        let rows = works
            .flat_map(|(path, work)| work.rows().into_iter().map(move |kind| (path, kind)))
            .chain(alone)
            .filter(|(path, kind)| wanted(&full_name(*path, kind.name)))
            .map(Row::new)
            .collect();
        Self {
            rows,
            kept: 0,
            dropped: 0,
        }
    }

    /// The rows with samples.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.mesh_median().is_some())
    }

    /// Whether a row of memory or start-up is selected.
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
            if best.is_none_or(|(_, smallest)| disturbance < smallest) {
                *best = Some((value, disturbance));
            }
        });
    }

    fn fill(&mut self, variant: Variant, measured: &Measured, mut put: impl FnMut(&mut Row, f64)) {
        for (kind, value) in measured.work.rows().into_iter().zip(&measured.values) {
            // Without a mesh there is no CPU time of proxies.
            if variant == Variant::Plain && kind.name.starts_with("cpu_s") {
                continue;
            }
            let mut rows = self.rows.iter_mut();
            if let Some(row) = rows.find(|row| (row.path, row.name) == (measured.path, kind.name)) {
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
    fn a_dropped_sample_is_used_only_without_a_kept_one() {
        let mut results = Results::new(|name| name == "tunnel/bulk_8");
        let measured = |value| Measured {
            path: MeasuredPath::Tunnel,
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
