//! Writes the generated YAML into the repository: `cargo xtask crds`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("this crate is not in a repository")?;
    for file in sheepdog_crds::generate::files()? {
        let path = root.join(file.path);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(&path, &file.text).map_err(|e| format!("{}: {e}", path.display()))?;
        println!("{}", file.path);
    }
    Ok(())
}
