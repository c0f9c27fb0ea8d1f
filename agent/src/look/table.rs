//! Columns for people, as kubectl prints them.

/// Rows below their headings, each column as wide as its widest cell.
pub(super) fn render(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let heading = headings.get(column).map_or(0, |heading| heading.len());
        cells.map(String::len).fold(heading, usize::max)
    };
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().enumerate();
        let padded = padded.map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        padded.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    let body = rows
        .iter()
        .map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(headings.to_vec()))
        .chain(body)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_where_their_text_does() {
        let rows = [["10.0.0.1:80", "a", "-"], ["x", "longer", "y"]];
        let rows = rows.map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            render(&["FRONTEND", "SERVICE", ""], &rows),
            "FRONTEND      SERVICE\n\
             10.0.0.1:80   a         -\n\
             x             longer    y"
        );
    }
}
