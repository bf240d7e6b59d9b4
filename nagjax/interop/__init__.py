"""nagjax in the interfaces of other libraries; each module needs its library, and `import nagjax` none of them."""
