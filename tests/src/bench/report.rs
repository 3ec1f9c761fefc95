//! The results as a table and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::rows::{Results, Row};

/// The rows as JSON: `{"rows":[{"name","unit","plain","mesh","ratio","runs"}]}`. `plain` and `ratio` are
/// null for rows without a plain variant.
#[must_use]
pub fn json(results: &Results) -> Value {
    let rows: Vec<_> = results
        .rows()
        .map(|row| {
            json!({
                "name": row.full_name(),
                "unit": row.unit,
                "plain": row.plain_median().map(rounded),
                "mesh": row.mesh_median().map(rounded),
                "ratio": row.ratio().map(rounded),
                "runs": row.mesh.len(),
            })
        })
        .collect();
    json!({ "rows": rows })
}

/// The rows as a table: medians with the smallest and the largest sample.
#[must_use]
pub fn table(results: &Results) -> String {
    let mut lines = vec![
        [
            "",
            "unit",
            "plain",
            "(min .. max)",
            "mesh",
            "(min .. max)",
            "ratio",
            "runs",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for row in results.rows() {
        let (plain, mesh) = (row.plain_median(), row.mesh_median());
        lines.push(vec![
            format!(
                "{}{}",
                row.full_name(),
                if row.disturbed() { " *" } else { "" }
            ),
            row.unit.to_owned(),
            plain.map(short).unwrap_or_default(),
            range(&row.plain),
            mesh.map(short).unwrap_or_default(),
            range(&row.mesh),
            row.ratio()
                .map(|ratio| format!("{ratio:.2}"))
                .unwrap_or_default(),
            row.mesh.len().to_string(),
        ]);
    }
    let mut text = aligned(&lines);
    writeln_to(
        &mut text,
        &format!(
            "{} samples kept, {} dropped because other processes or the hypervisor used more than {:.0} % of their wall time.",
            results.kept,
            results.dropped,
            super::machine::TOLERANCE * 100.0
        ),
    );
    if results.rows().any(Row::disturbed) {
        writeln_to(
            &mut text,
            "* a variant has no undisturbed sample: the least disturbed one is shown.",
        );
    }
    text
}

/// A line for each row with a target, and whether the target is met.
#[must_use]
pub fn targets(results: &Results) -> String {
    let mut text = String::new();
    for row in results.rows() {
        let target = row.path.target(row.name, row.better);
        if let Some((reached, wanted, kept)) = target.and_then(|target| target.evaluate(row)) {
            let verdict = if kept { "kept  " } else { "MISSED" };
            let line = format!(
                "{verdict}  {}: {}, {wanted}",
                row.full_name(),
                short(reached)
            );
            writeln_to(&mut text, &line);
        }
    }
    text
}

fn writeln_to(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _written = writeln!(text, "{line}");
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut out = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let space = " ".repeat(width - cell.chars().count());
            // Names and units are aligned left, numbers right.
            if column < 2 {
                out.push_str(cell);
                out.push_str(&space);
            } else {
                out.push_str(&space);
                out.push_str(cell);
            }
            out.push_str("  ");
        }
        writeln_to(&mut text, out.trim_end());
    }
    text
}

fn range(samples: &[f64]) -> String {
    let smallest = samples.iter().copied().reduce(f64::min);
    let largest = samples.iter().copied().reduce(f64::max);
    match (smallest, largest) {
        (Some(smallest), Some(largest)) => format!("({} .. {})", short(smallest), short(largest)),
        _ => String::new(),
    }
}

/// A number with about three significant digits.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::rows::Measured;
    use crate::bench::work::Work;
    use crate::bench::{MeasuredPath, Variant};

    fn results() -> Results {
        let mut results = Results::new(|name| {
            ["tunnel/bulk_8", "tunnel/ready_ms", "joined/bulk_1"].contains(&name)
        });
        let measured = |value| Measured {
            path: MeasuredPath::Tunnel,
            work: Work::Bulk(8),
            values: vec![value],
        };
        results.keep_sample(Variant::Plain, &measured(20.0));
        results.keep_sample(Variant::Mesh, &measured(5.0));
        results.keep_sample(Variant::Mesh, &measured(7.0));
        results.push("ready_ms", 12.5);
        results
    }

    #[test]
    fn json_has_the_documented_shape() {
        let expected = json!({ "rows": [
            { "name": "tunnel/bulk_8", "unit": "Gbit/s", "plain": 20.0, "mesh": 6.0, "ratio": 0.3, "runs": 2 },
            { "name": "tunnel/ready_ms", "unit": "ms", "plain": null, "mesh": 12.5, "ratio": null, "runs": 1 },
        ] });
        assert_eq!(json(&results()), expected);
    }

    #[test]
    fn a_target_is_met_or_missed() {
        let mut results = results();
        assert_eq!(targets(&results), "");
        let measured = |value| Measured {
            path: MeasuredPath::Joined,
            work: Work::Bulk(1),
            values: vec![value, 0.0, 0.0],
        };
        results.keep_sample(Variant::Plain, &measured(10.0));
        results.keep_sample(Variant::Mesh, &measured(14.0));
        let line = "kept    joined/bulk_1: 1.40, at least 1.30 of plain\n";
        assert_eq!(targets(&results), line);
        for _ in 0..2 {
            results.keep_sample(Variant::Mesh, &measured(12.0));
        }
        let line = "MISSED  joined/bulk_1: 1.20, at least 1.30 of plain\n";
        assert_eq!(targets(&results), line);
    }

    #[test]
    fn the_table_is_aligned() {
        let text = table(&results());
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].starts_with("tunnel/bulk_8    Gbit/s   20.0  (20.0 .. 20.0)  6.00"),
            "{text}"
        );
        assert!(text.contains("3 samples kept, 0 dropped"), "{text}");
    }
}
