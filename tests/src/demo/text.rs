//! Texts of the demonstration.

use std::path::Path;

use crate::net::{Family, World};
use crate::proxy::Mesh;

/// Cells in columns as wide as their longest cell, two spaces apart.
pub(super) fn columns(lines: &[Vec<String>]) -> String {
    let count = lines.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..count)
        .map(|column| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
        })
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(cell);
            row.push_str(&" ".repeat(width + 2 - cell.chars().count()));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// What a person can do with nodes that were kept.
pub(super) fn what_to_try(world: &World, traffic: &Path) -> String {
    let enter = |name: &str| format!("nsenter --net=/run/netns/{name}");
    let a = world.node("a");
    let client = world.pod("a", 0);
    let service = Mesh::service(world.pod("b", 0));
    let traffic = traffic.display();
    format!(
        "
everything stays. What to try:
  a shell in pod a-0         {shell} bash
  a request by service       {shell} curl -s http://{v4}/
  the same over IPv6         {shell} curl -s -g 'http://{v6}/'
  load                       {shell} {traffic} http --to {pod} --connections 16
  node a's metrics           {node} curl -s http://127.0.0.1:15020/metrics
  node a's view of the mesh  {node} curl -s http://127.0.0.1:15000/config_dump
  settings, logs             {directory}/node-*/
  remove everything          cargo xtask demo --clean",
        shell = enter(client.namespace.name()),
        node = enter(a.host.namespace.name()),
        v4 = service.at(Family::V4, 80),
        v6 = service.at(Family::V6, 80),
        pod = world.pod("b", 0).at(Family::V4, super::PORT),
        directory = world.directory().display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let lines =
            [["a", "long cell"], ["longer", "b"]].map(|line| line.map(str::to_owned).to_vec());
        assert_eq!(columns(&lines), "a       long cell\nlonger  b\n");
    }
}
