import { OptionDefaults } from "typedoc";

/** @type {Partial<import("typedoc").TypeDocOptions>} */
export default {
  // Links to sources need a remote of the repository that typedoc knows. Clones have others, or none.
  disableSources: true,
  entryPoints: ["src/index.ts", "src/web.ts", "src/proto.ts"],
  out: "docs",
  readme: "README.md",
  // Of what protoc-gen-es writes.
  blockTags: [...OptionDefaults.blockTags, "@generated"],
  excludeInternal: true,
  excludePrivate: true,
  excludeProtected: true,
  treatWarningsAsErrors: true,
  validation: { notExported: true, invalidLink: true, notDocumented: true },
  requiredToBeDocumented: ["Class", "Interface", "Method", "Accessor", "Function", "TypeAlias"],
};
