//! Paths as they are written; nobody is asked whether anything is there.

use std::path::Path;

/// The folder that a path lies in. Of a name alone, `Path::parent` gives the empty path, which cannot be opened.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_lies_in_the_current_folder() {
        let folders = ["data", "srv/data", "/data", "./data"].map(|path| folder_of(Path::new(path)));
        assert_eq!(folders, [".", "srv", "/", "."].map(Path::new));
    }
}
