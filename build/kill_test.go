package build

const childArg = "build-until-killed"

func child() {}
