//! The Helm chart in `deploy/chart`, rendered here, and the kustomize base and components that are generated from it.
//!
//! The chart is the one source of all manifests. Its templates use only [`functions`] and plain control structures, so that the
//! result equals Helm's.

mod functions;
mod generate;
mod kustomize;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use gtmpl::{Context as Data, Template};
use serde_json::{Value, json};

pub use generate::{files, obsolete};
pub use kustomize::build;

/// The release's namespace in generated files.
const NAMESPACE: &str = "kube-system";

/// A chart: its templates, default values, and name and version.
#[derive(Debug)]
pub struct Chart {
    root: PathBuf,
    values: Value,
    meta: Value,
}

/// A rendered template.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The template's file name.
    pub file: String,
    /// YAML with comments; one or more documents.
    pub text: String,
}

impl Rendered {
    /// Its documents. Empty ones are left out.
    ///
    /// # Errors
    /// When it is not YAML.
    pub fn documents(&self) -> Result<Vec<Value>> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&self.text)
            .with_context(|| format!("{} became\n{}", self.file, self.text))?;
        Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
    }
}

impl Chart {
    /// Reads `Chart.yaml` and `values.yaml`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn open(root: &Path) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            values: yaml(&root.join("values.yaml"))?,
            meta: yaml(&root.join("Chart.yaml"))?,
        })
    }

    /// Its default values, with these in place of some of them. Maps are merged, lists replaced, and null removes a value, as
    /// Helm has it.
    pub fn values(&self, over: &Value) -> Value {
        let mut values = self.values.clone();
        json_patch::merge(&mut values, over);
        values
    }

    /// Renders all templates with these values in place of defaults. A template that renders to nothing is left out.
    ///
    /// # Errors
    /// When a template is wrong, or uses a function that [`functions`] does not have.
    pub fn render(&self, over: &Value) -> Result<Vec<Rendered>> {
        let data = json!({
            "Values": self.values(over),
            "Release": { "Namespace": NAMESPACE, "Name": "proxy-agent" },
            "Chart": { "AppVersion": self.meta["appVersion"], "Version": self.meta["version"] },
            "FileContents": self.file_contents()?,
        });
        let templates = self.root.join("templates");
        let helpers = fs::read_to_string(templates.join("_helpers.tpl"))?;
        let mut rendered = Vec::new();
        for path in
            sorted(&templates)?.into_iter().filter(|path| path.extension().is_some_and(|it| it == "yaml"))
        {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = helpers.clone() + &fs::read_to_string(&path)?;
            let text = render(&text, &data).with_context(|| file.clone())?;
            let text = format!("{}\n", text.trim());
            let rendering = Rendered { file, text };
            if !rendering.documents()?.is_empty() {
                rendered.push(rendering);
            }
        }
        Ok(rendered)
    }

    /// The objects of a rendering.
    ///
    /// # Errors
    /// The same as for [`Self::render`].
    pub fn objects(&self, over: &Value) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for rendered in self.render(over)? {
            objects.extend(rendered.documents()?);
        }
        Ok(objects)
    }

    /// The contents for `.Files.Get`.
    fn file_contents(&self) -> Result<Value> {
        let mut contents = json!({});
        for path in sorted(&self.root.join("files"))? {
            let name = format!("files/{}", path.file_name().unwrap_or_default().to_string_lossy());
            contents[name] = fs::read_to_string(&path)?.into();
        }
        Ok(contents)
    }
}

/// Renders one template.
fn render(text: &str, data: &Value) -> Result<String> {
    // The crate has no methods.
    let text = text.replace(".Files.Get ", "index $.FileContents ");
    let mut template = Template::default();
    template.add_funcs(functions::ALL);
    template.parse(text)?;
    let text = template.render(&Data::from(functions::value_of(data)))?;
    ensure!(!text.contains("<no value>"), "a value is missing:\n{text}");
    Ok(text)
}

/// Reads a YAML file.
fn yaml(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_str(&text).with_context(|| path.display().to_string())
}

/// Files of a folder by name.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The identity of an object: kind and name.
pub fn key(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}
